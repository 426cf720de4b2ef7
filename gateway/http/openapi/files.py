"""The files of the artifact store as OpenAPI has them: raw bytes, ranges, links."""

from dataclasses import dataclass
from typing import Final

from litestar.openapi.spec import OpenAPIFormat, OpenAPIType, Schema

from gateway.http.media_types import PLAIN_BYTES
from gateway.http.openapi.examples import EXAMPLE_ETAG
from gateway.http.openapi.operations import DescribedOperation, parameter

# Raw bytes. In OpenAPI 3.1 the media type alone would do, but client generators look for this.
_BYTES: Final = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
_OF_A_FILE: Final = "The SHA-256 of the file."


@dataclass
class FileOperation(DescribedOperation):
    """A file of the artifact store, whole or in part."""

    def linked(self) -> None:
        """The answer may be a link to the file."""
        self.answer(
            302,
            "A redirect to the object store, if this deployment gives links. The link needs no key, and expires after "
            "a while.",
        )
        self.send(302, {"Location": "A URL of the object store.", "ETag": _OF_A_FILE})

    def whole(self, what: str, *media_types: str) -> None:
        """The answer is the whole file *what*."""
        self.answer(200, f"The whole {what}.", *media_types, PLAIN_BYTES, schema=_BYTES)
        self.send(200, {"Content-Length": "The size of the body in bytes."})

    def file(self, what: str, *media_types: str) -> None:
        """The answer is the file *what*, of one of *media_types*, or a range of it."""
        self.accept(
            parameter(
                "Range", "One range of bytes; several ranges, or another unit, return the whole file.", "bytes=0-1023"
            ),
            parameter("If-Range", "Honour Range only while the file has this ETag.", EXAMPLE_ETAG),
        )
        sent = {"Accept-Ranges": "`bytes`", "Content-Length": "The size of the body in bytes."}
        # PLAIN_BYTES is for clients that accept nothing else, and client generators know it as bytes
        self.answer(200, f"The whole {what}.", *media_types, PLAIN_BYTES, schema=_BYTES)
        self.answer(206, "The bytes that Range asked for.", *media_types, PLAIN_BYTES, schema=_BYTES)
        self.send(200, sent)
        self.send(206, {"ETag": _OF_A_FILE, **sent, "Content-Range": "The range sent, and the size of the file."})
        self.conditional(_OF_A_FILE, example=EXAMPLE_ETAG)
        self.send(416, {"Content-Range": f"The size of the {what} in bytes."})


@dataclass
class VideoOperation(FileOperation):
    """`GET /tasks/{id}/video`: an MP4."""

    def __post_init__(self) -> None:
        self.file("video", "video/mp4")
        self.linked()


@dataclass
class ThumbnailOperation(FileOperation):
    """`GET /tasks/{id}/thumbnail`: a WebP."""

    def __post_init__(self) -> None:
        self.file("thumbnail", "image/webp")


@dataclass
class FileHeadOperation(DescribedOperation):
    """`HEAD /tasks/{id}/video`: the headers alone."""

    def __post_init__(self) -> None:
        self.answer(200, "The video exists.")
        self.send(200, {"Content-Length": "Its size in bytes."})
        self.conditional(_OF_A_FILE, example=EXAMPLE_ETAG)
