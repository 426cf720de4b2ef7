"""The server's time of an entry, as a read and as a watch give it."""

from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from ops.nats.clock import parse_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(0, 4_000_000_000), st.integers(0, 999_999_999))
@example(1_795_544_922, 955_000_500)
@example(1_795_544_922, 0)
def test_a_read_and_a_watch_give_the_same_time(seconds: int, nanoseconds: int) -> None:
    """Two gateways show the same time of a switch: the one that set it and the one whose watch delivered it."""
    whole = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""  # as Go writes it
    watched = Msg.Metadata._from_reply(f"$JS.ACK.KV_control.watch.1.2.3.{seconds}{nanoseconds:09d}.0").timestamp
    assert parse_time(f"{whole}{fraction}Z") == watched
    assert abs(watched - EPOCH - timedelta(seconds=seconds, microseconds=nanoseconds / 1000)) < timedelta(
        microseconds=2
    )
