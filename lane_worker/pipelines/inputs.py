"""The input image: decoded here, in the child, within limits that the gateway's look at the header had set."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from contracts.tasks import ImageReference

# Above any limit of the settings: what stands between a forged reference and the memory of the child.
MAX_PIXELS: Final = 1 << 26
FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


class BadInput(Exception):
    """The image cannot be used. The text says why, without a byte of it."""


def read_image(path: Path, reference: ImageReference, *, width: int, height: int) -> Image.Image:
    """The image at *path*, as RGB, scaled to cover *width* x *height* and cropped at its centre.

    Raises BadInput when it is not what *reference* says, or cannot be decoded; OSError when it cannot be read.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise BadInput("the stored image is not the one that was sent; send the request again")
    image = _decode(content, reference)
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def _decode(content: bytes, reference: ImageReference) -> Image.Image:
    kind = FORMATS.get(reference.media_type)
    if kind is None:
        raise BadInput(f"images of type {reference.media_type} are not supported; send a PNG, JPEG or WebP")
    if reference.width * reference.height > MAX_PIXELS:
        raise BadInput(f"the image has more than {MAX_PIXELS} pixels; send a smaller one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                # known from the header alone: nothing is decoded before it is known to fit
                size = image.size
                if size == (reference.width, reference.height):
                    image.load()
                    return _as_rgb(ImageOps.exif_transpose(image))
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
    """The image of a request without one: a gradient between two colours, which the seed chooses."""
    first, second = np.random.default_rng(seed).integers(0, 256, size=(2, 3))
    ramp = np.add.outer(np.linspace(0, 0.5, height), np.linspace(0, 0.5, width))[:, :, None]
    return Image.fromarray((first * (1 - ramp) + second * ramp).round().astype(np.uint8))
