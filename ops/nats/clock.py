"""The server's timestamps."""

from datetime import UTC, datetime


def parse_time(text: str) -> datetime:
    """A server timestamp (RFC 3339 with up to nanoseconds) as an aware datetime.

    It is rounded as nats-py rounds the time of a message: an entry has the same time whether it was read or came from a
    watch.
    """
    whole, _, fraction = text.removesuffix("Z").removesuffix("+00:00").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    nanoseconds = seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
