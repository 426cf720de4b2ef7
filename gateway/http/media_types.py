"""Which media type the bytes of a file are sent as. Pure."""

from typing import Final

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

PLAIN_BYTES: Final = "application/octet-stream"
"""What any file is sent as to a client that accepts this and not the file's own type. Generators of clients know it as
bytes, where they know neither `video/mp4` nor `image/webp`."""


def sent_as(media_type: str, accept: str | None) -> str:
    """What a file of *media_type* is sent as to a client whose header `Accept` is *accept* (RFC 9110 §12.5.1).

    A client that accepts neither, or does not say, gets the file as what it is.
    """
    found = parse_accept_header(accept, MIMEAccept).best_match([media_type, PLAIN_BYTES], media_type)
    return found or media_type
