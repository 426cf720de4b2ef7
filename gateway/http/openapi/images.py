"""What the signatures of the routes of images cannot say."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, RequestBody, Schema

from contracts.fields import ImageField
from gateway.http.media_types import PLAIN_BYTES
from gateway.http.openapi.operations import DescribedOperation

_FILE = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)


@dataclass
class UploadOperation(DescribedOperation):
    """`POST /images`: its body, which the handler reads itself."""

    def __post_init__(self) -> None:
        form = Schema(
            type=OpenAPIType.OBJECT, properties={"image": _FILE}, required=["image"], additional_properties=False
        )
        # the types of any profile; GET /settings says which of them a model takes. They are in the text, since client
        # generators know no media types of images
        types = ", ".join(f"`{media_type}`" for media_type in ImageField("optional").media_types)
        self.request_body = RequestBody(
            required=True,
            description=f"The file itself, declared with its own media type ({types}) or as `{PLAIN_BYTES}`; or a form "
            "with the file `image`.",
            content={
                PLAIN_BYTES: OpenAPIMediaType(schema=_FILE),
                "multipart/form-data": OpenAPIMediaType(schema=form),
            },
        )
        self.send(201, {"Location": "The path of the image."})
        self.send(503, {"Retry-After": "Seconds to wait before trying again."})
