"""The server's timestamps."""

from datetime import UTC, datetime


def parse_time(text: str) -> datetime:
    """A server timestamp (RFC 3339 with up to nanoseconds) as an aware datetime.

    Rounded as nats-py rounds that of a message: what was read and what a watch reported of it are equal.
    """
    whole, _, fraction = text.removesuffix("Z").removesuffix("+00:00").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    nanoseconds = seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
