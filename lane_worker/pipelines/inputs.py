"""The input image: decoded here, in the child, within the limits that the gateway has read from its header."""

import hashlib
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from contracts.tasks import ImageReference
from lane_worker.pipelines.pictures import load_picture, open_picture

# Above any limit of the settings. It protects the memory of the child from a forged reference.
MAX_PIXELS: Final = 1 << 26
# Wan's VAE packs 8 x 8 pixels, its transformers 2 x 2 of those: the authors round sizes down to such steps.
GRID_PIXELS: Final = 16
FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


class BadInput(Exception):
    """The image cannot be used. The text says why, without a byte of the image."""


def read_image(path: Path, reference: ImageReference, *, width: int, height: int) -> Image.Image:
    """The image at *path*, as RGB, turned as its EXIF says, and fitted to *width* x *height* (`fitted`).

    Raises BadInput when it is not what *reference* says, or cannot be decoded; OSError when it cannot be read.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise BadInput("the stored image is not the one that was sent; send the request again")
    return fitted(_decode(content, reference), width, height)


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """*image* as the first frame of a video of *width* x *height*, as Wan's authors make it (ADR 0022): scaled with a
    bicubic filter until it covers the frame, and cropped at its centre.

    Where less than a grid step would stick out in both directions, nothing is cropped. The authors would choose such a
    size for the image, and stretch the image by what they rounded away.
    """
    across, down = width / image.width, height / image.height
    scale = max(across, down)
    if scale * image.width < width + GRID_PIXELS and scale * image.height < height + GRID_PIXELS:
        return image.resize((width, height), Image.Resampling.BICUBIC)
    # the crop comes first, since an image of one row, scaled to cover a frame, would be far larger than the frame
    left, top = max(0.0, (image.width - width / scale) / 2), max(0.0, (image.height - height / scale) / 2)
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _decode(content: bytes, reference: ImageReference) -> Image.Image:
    kind = FORMATS.get(reference.media_type)
    if kind is None:
        raise BadInput(f"images of type {reference.media_type} are not supported; send a PNG, JPEG or WebP")
    if reference.width * reference.height > MAX_PIXELS:
        raise BadInput(f"the image has more than {MAX_PIXELS} pixels; send a smaller one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_picture(content, kind) as image:
                # known from the header alone: nothing is decoded before it is known to fit
                size = image.size
                if size == (reference.width, reference.height):
                    return _as_rgb(load_picture(image, content, kind))
    except MemoryError:
        raise
    except Exception as error:
        # whatever a decoder raises on broken bytes (OSError, SyntaxError, ValueError, struct.error, …) means the same
        raise BadInput("the image cannot be decoded; it is cut short or damaged") from error
    raise BadInput(f"the image is {size[0]} x {size[1]}, not {reference.width} x {reference.height} as its header said")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would make white of all but the darkest
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return image.convert("RGB")


def gradient(seed: int, width: int, height: int) -> Image.Image:
    """The image of a request without one, for random weights: a gradient between two colours of the seed's choice."""
    first, second = np.random.default_rng(seed).integers(0, 256, size=(2, 3))
    ramp = np.add.outer(np.linspace(0, 0.5, height), np.linspace(0, 0.5, width))[:, :, None]
    return Image.fromarray((first * (1 - ramp) + second * ramp).round().astype(np.uint8))
