"""The image of a request, in the forms in which it may come: as a file, as a data URI, by reference, by address. Pure.

A file and a data URI hold the image. A reference and an address only say where it is. Such a request is checked in all
other fields first, and is complete when `with_image` has judged the image that was found.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET, Struct

from contracts.fields import ImageField
from contracts.generation.errors import FieldError, shown, wrong_type
from contracts.images import BadImage, parse_data_uri, read_header
from contracts.settings import Catalog
from contracts.tasks import ImageReference
from contracts.urls import BadUrl, parse_url

IMAGE_FORMS: Final = 'data URI, {"ref": …} or {"url": …}'
_SOURCES: Final = ["ref", "url"]
# Declared by senders that do not know the type; not compared with the file.
UNKNOWN_TYPES: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})


class ImageFile(Struct, frozen=True):
    """The bytes of an image, and the media type that its sender declared, if they did."""

    content: bytes
    declared: str = ""


class ImageByReference(Struct, frozen=True):
    """An image that was uploaded before, with `POST /images`."""

    ref: str


class ImageByAddress(Struct, frozen=True):
    """An image that the gateway fetches."""

    url: str


ImageSource = ImageByReference | ImageByAddress
"""Where to find an image that did not come with its request."""


def judged(file: ImageFile, limits: ImageField) -> ImageReference:
    """What *file* is, if it is within *limits*. Raises BadImage."""
    content = file.content
    if len(content) > limits.max_bytes:
        raise BadImage(f"more than {limits.max_bytes} bytes")
    header = read_header(content)
    if file.declared not in UNKNOWN_TYPES and file.declared != header.media_type:
        raise BadImage(f"declared as {shown(file.declared)}, but its first bytes are those of {header.media_type}")
    if header.media_type not in limits.media_types:
        raise BadImage(f"{header.media_type} is not accepted; send one of {', '.join(limits.media_types)}")
    if header.width * header.height > limits.max_pixels:
        raise BadImage(f"{header.width} x {header.height} is more than {limits.max_pixels} pixels")
    return ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type=header.media_type,
        bytes=len(content),
        width=header.width,
        height=header.height,
    )


def widest_limits(catalog: Catalog) -> ImageField | None:
    """The widest limits of all models, for an image whose model is not known yet; None if no model takes images."""
    every = [entry.constraints.image for entry in catalog.models.values()]
    taking = [limits for limits in every if limits.presence != "unsupported"]
    if not taking:
        return None
    types = {media_type: None for limits in taking for media_type in limits.media_types}
    return ImageField(
        presence="optional",
        max_bytes=max(limits.max_bytes for limits in taking),
        max_pixels=max(limits.max_pixels for limits in taking),
        media_types=tuple(types),
    )


def image_of(
    name: str, value: Any, limits: ImageField, errors: list[FieldError]
) -> tuple[ImageReference, bytes] | ImageSource | None:
    """The image in *value*, or where it is. None if there is none, or if it is wrong and *errors* says how."""
    if value is UNSET:
        if limits.presence == "required":
            message = "image: this model turns an image into a video; send one as a file, a data URI or a reference"
            errors.append(FieldError(pointer=f"/{name}", code="image_required", message=message, expected=IMAGE_FORMS))
        return None
    if not isinstance(value, (str, dict, ImageFile)):
        errors.append(wrong_type(name, IMAGE_FORMS, value))
        return None
    if limits.presence == "unsupported":
        message = "image: this model takes text only; leave the field out"
        errors.append(FieldError(pointer=f"/{name}", code="image_unsupported", message=message))
        return None
    if isinstance(value, dict):
        return _source(name, value, errors)
    try:
        if isinstance(value, str):
            declared, content = parse_data_uri(value, max_bytes=limits.max_bytes)
            value = ImageFile(content, declared)
        return judged(value, limits), value.content
    except BadImage as error:
        errors.append(bad_image(error))
        return None


def bad_image(error: BadImage, source: ImageSource | None = None) -> FieldError:
    """What is wrong with the image of a request, whether it came with the request or was found at *source*."""
    match source:
        case None:
            name = "image"
        case ImageByReference():
            name = "image/ref"
        case ImageByAddress():
            name = "image/url"
    return FieldError(pointer=f"/{name}", code="bad_image", message=f"{name}: {error}")


def no_such_image(ref: str) -> FieldError:
    """The caller has no image with the reference *ref*, or no longer has it. The error is the same for a reference of
    another caller."""
    message = "image/ref: no image of yours has this reference, or it has expired; POST /images gives one"
    return FieldError(pointer="/image/ref", code="image_not_found", message=message, got=shown(ref))


def _source(name: str, value: Mapping[str, Any], errors: list[FieldError]) -> ImageSource | None:
    for unknown in sorted(value.keys() - set(_SOURCES))[:1]:
        message = f"{name}: no such field {shown(unknown)!r}; the fields are ref and url"
        errors.append(FieldError(pointer=f"/{name}", code="unknown_field", message=message, expected=_SOURCES))
        return None
    if len(value) != 1:
        message = f"{name}: expected either ref or url"
        errors.append(FieldError(pointer=f"/{name}", code="one_of", message=message, expected=_SOURCES))
        return None
    ((source, given),) = value.items()
    where = f"{name}/{source}"
    if not isinstance(given, str):
        errors.append(wrong_type(where, "string", given))
    elif source == "ref":
        return ImageByReference(given)
    else:
        try:
            parse_url(given)
        except BadUrl as error:
            message = f"{where}: {error}"
            errors.append(FieldError(pointer=f"/{where}", code="bad_url", message=message, expected="https URL"))
        else:
            return ImageByAddress(given)
    return None
