"""Parses a body of `multipart/form-data` while it streams, and keeps no more of it than a request may hold."""

from typing import Any, Final

from litestar import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from contracts.generation.body import MalformedBody
from contracts.generation.form import PARTS_MAX, FormFields, FormTarget
from gateway.http.body import MAX_BODY_BYTES, body_chunks, media_type_of, too_much_beside
from gateway.http.problems import ProblemError

FORM: Final = "multipart/form-data"
# `data:image/png;base64,`, an object around it, and line breaks within it.
_BEFORE_BASE64: Final = 512 * 1024


class Part:
    """One part of a form, while it arrives."""

    def __init__(self, segment: MultipartSegment, target: FormTarget, most: int) -> None:
        """At most *most* bytes of it are kept."""
        self.name = segment.name or ""
        self.declared = (segment.content_type or "").lower()
        # browsers and libraries give only a file a name or a type: that tells an image from the text of a data URI
        is_file = segment.filename is not None or bool(self.declared)
        self.is_image = is_file and target.is_image(self.name)
        self.is_image_text = not is_file and target.is_image_text(self.name)
        self.most = most
        self.content = bytearray()

    def add(self, chunk: bytes) -> None:
        """Keeps as much of *chunk* as may be kept."""
        self.content += chunk[: self.most - len(self.content)]


class FormReader:
    """Parses a form from its chunks. It keeps *image_max_bytes* of an image, and one byte more, which shows that the
    image is too large. Everything that is no image may have *text_max_bytes* together."""

    def __init__(
        self, content_type: str, *, image_max_bytes: int, text_max_bytes: int, target: FormTarget | None = None
    ) -> None:
        self._image_most, self._text_max = image_max_bytes + 1, text_max_bytes
        self._fields: FormTarget = target or FormFields()
        self._part: Part | None = None
        self._text_bytes = 0
        self._error: ProblemError | None = None
        try:
            _, options = parse_options_header(content_type)
            self._parser = PushMultipartParser(options.get("boundary", ""), max_segment_count=PARTS_MAX)
        except (MultipartError, UnicodeEncodeError) as error:
            self._error = _malformed(error)

    def feed(self, chunk: bytes) -> None:
        """Takes in *chunk*. After an error it skips the rest; `fields` raises the error when all has come."""
        if self._error is not None or not chunk:
            return
        try:
            for event in self._parser.parse(chunk):
                self._take(event)
        except (MultipartError, MalformedBody) as error:
            self._error = _malformed(error)

    def fields(self) -> dict[str, Any]:
        """The fields of the form, once all of it has come. Raises ProblemError."""
        if self._text_bytes > self._text_max:
            raise too_much_beside(self._text_bytes, self._text_max)
        if self._error is None:
            try:
                self._parser.close()
            except MultipartError as error:
                self._error = _malformed(error)
        if self._error is not None:
            raise self._error
        return self._fields.values

    def _take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._part = Part(event, self._fields, self._text_max)
            if self._part.is_image:
                self._part.most = self._image_most
            elif self._part.is_image_text:
                self._part.most = self._image_most * 4 // 3 + _BEFORE_BASE64
            else:
                self._text_bytes += len(self._part.name)
            return
        part = self._part
        assert part is not None  # a part begins before it goes on
        if event is not None:
            if not (part.is_image or part.is_image_text):
                self._text_bytes += len(event)
            part.add(bytes(event))
        elif part.is_image:
            self._fields.add_image(part.name, bytes(part.content), part.declared)
        elif self._text_bytes <= self._text_max:
            self._fields.add_text(part.name, bytes(part.content))


async def read_form(
    request: Request[Any, Any, Any],
    *,
    image_max_bytes: int,
    text_max_bytes: int,
    max_bytes: int = MAX_BODY_BYTES,
    target: FormTarget | None = None,
) -> FormReader:
    """The form in the body of *request*, which may have *max_bytes*. *target* takes its parts; without it they are
    those of `POST /generate`. Raises HTTPException (413), ProblemError."""
    reader = FormReader(
        request.headers.get("content-type", ""),
        image_max_bytes=image_max_bytes,
        text_max_bytes=text_max_bytes,
        target=target,
    )
    async for chunk in body_chunks(request, max_bytes=max_bytes):
        reader.feed(chunk)
    return reader


def is_form(request: Request[Any, Any, Any]) -> bool:
    """Whether the body is declared as a form."""
    return media_type_of(request) == FORM


def _malformed(error: Exception) -> ProblemError:
    return ProblemError("malformed_body", f"the form cannot be read: {error}")
