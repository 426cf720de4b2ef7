"""An entry of a KV bucket, as bytes. `ops.nats.bucket.Versioned` gives it a type."""

from datetime import datetime

from msgspec import Struct


class Entry(Struct, frozen=True):
    """A key's value at one revision, and the server's time of it; *value* is None for a deletion marker."""

    key: str
    value: bytes | None
    revision: int
    time: datetime
