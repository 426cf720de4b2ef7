"""The image of a request as OpenAPI has it, for `POST /generate` and for `POST /v1/videos`."""

from typing import Final

from litestar.openapi.spec import OpenAPIType, Schema

from contracts.fields import ImageField
from contracts.urls import URL_MAX_CHARS

_FETCHED: Final = (
    "The gateway fetches the image before it answers, which may take up to 10 s longer. It fetches only from hosts "
    "that the operator allowed."
)
_UPLOADED: Final = "The `id` that `POST /images` returned."
_SCALED: Final = "The image is scaled to cover width and height, and cropped at its centre."


def image_schema(field: ImageField) -> Schema:
    """The field `image` of `POST /generate`."""
    return Schema(
        one_of=[
            _data_uri(field),
            _named("ref", _upload(), "ImageByReference", _UPLOADED),
            _named("url", _address(), "ImageByAddress", _FETCHED),
        ],
        description=(
            f"{_limits(field)}; as a data URI, as the `id` of an upload, or by address. In a form it may also be a "
            f"file. {_SCALED}"
        ),
    )


def reference_schema(field: ImageField) -> Schema:
    """The field `input_reference` of `POST /v1/videos`, in the forms that `gateway.videos.fields` reads in JSON."""
    image_url = Schema(one_of=[_data_uri(field), _address(_FETCHED)])
    return Schema(
        one_of=[
            _named("image_url", image_url, "ImageByUrl", "The image as a data URI, or its address."),
            _named("file_id", _upload(), "ImageByFileId", _UPLOADED),
        ],
        description=f"{_limits(field)}; as a data URI, by address, or as the `id` of an upload. {_SCALED}",
    )


def _limits(field: ImageField) -> str:
    return (
        f"The first frame, {field.presence}: a {' or '.join(_kinds(field))} file, at most {field.max_bytes} bytes and "
        f"{field.max_pixels} pixels"
    )


def _data_uri(field: ImageField) -> Schema:
    names = _kinds(field)
    shortest = min((len(name) for name in names), default=0)
    return Schema(
        type=OpenAPIType.STRING,
        title="ImageInRequest",
        pattern=f"^data:image/({'|'.join(names)});base64,[A-Za-z0-9+/]+={{0,2}}$",
        max_length=len("data:image/;base64,") + shortest + field.max_bytes // 3 * 4,
        description="The file as a base64 data URI. The declared type must be that of the file.",
    )


def _upload() -> Schema:
    return Schema(type=OpenAPIType.STRING, pattern="^img_[0-9a-f]{32}$", max_length=URL_MAX_CHARS)


def _address(description: str | None = None) -> Schema:
    return Schema(
        type=OpenAPIType.STRING, pattern=r"^https?://[^\s#@]+$", max_length=URL_MAX_CHARS, description=description
    )


def _named(name: str, value: Schema, title: str, description: str) -> Schema:
    return Schema(
        type=OpenAPIType.OBJECT,
        title=title,
        properties={name: value},
        required=[name],
        additional_properties=False,
        description=description,
    )


def _kinds(field: ImageField) -> list[str]:
    return [media_type.removeprefix("image/") for media_type in field.media_types]
