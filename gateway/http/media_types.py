"""Which media type the bytes of a file are sent as. Pure."""

from typing import Final

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

PLAIN_BYTES: Final = "application/octet-stream"
"""The type of any file for a client that accepts this and not the file's own type. Client generators know it as bytes,
but know neither `video/mp4` nor `image/webp`."""


def sent_as(media_type: str, accept: str | None) -> str:
    """The type of a file of *media_type* for a client whose header `Accept` is *accept* (RFC 9110 §12.5.1).

    A client that accepts neither, or sends no `Accept`, gets the file under its own type.
    """
    found = parse_accept_header(accept, MIMEAccept).best_match([media_type, PLAIN_BYTES], media_type)
    return found or media_type
