"""What a consumer writes beside its messages, read as nats-py reads it."""

import pytest
from nats.aio.msg import Msg

from ops.nats.following import parsed, value_of

SUBJECT = b"$KV.tasks.a"
SHORT = "$JS.ACK.KV_tasks.c1.1.17.4.1790000000123456789.3"
LONG = "$JS.ACK._.hash.KV_tasks.c1.1.17.4.1790000000123456789.3.rand"


@pytest.mark.parametrize("reply", [SHORT, LONG, LONG.removesuffix(".rand")])
def test_a_message_says_where_it_stands(reply: str) -> None:
    theirs = Msg.Metadata._from_reply(reply)
    sequence, message = parsed(SUBJECT, reply.encode(), b"x", b"")
    assert sequence == theirs.sequence.consumer == 4
    assert message.seq == theirs.sequence.stream == 17
    assert message.pending == theirs.num_pending == 3
    assert message.time == theirs.timestamp
    assert (message.subject, message.data) == (SUBJECT.decode(), b"x")


@pytest.mark.parametrize(
    ("headers", "is_marker"),
    [
        (b"", False),
        (b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n", False),
        (b"NATS/1.0\r\nNats-Msg-Id: KV-Operation:\r\n\r\n", False),
        (b"NATS/1.0\r\nA: b\r\nKV-Operation: DEL\r\n\r\n", True),
        (b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\n\r\n", True),
    ],
)
def test_a_marker_is_told_from_a_value(headers: bytes, is_marker: bool) -> None:
    assert parsed(SUBJECT, SHORT.encode(), b"", headers)[1].is_marker is is_marker


@pytest.mark.parametrize("reply", ["", "_INBOX.a.b", "$JS.ACK.KV_tasks.c1.1.17", f"{SHORT}.1"])
def test_what_no_consumer_sent_is_refused(reply: str) -> None:
    with pytest.raises(ValueError, match="not a message of a consumer"):
        parsed(SUBJECT, reply.encode(), b"x", b"")


def test_a_value_of_a_heartbeat() -> None:
    headers = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream:1024\r\n\r\n"
    assert value_of(headers, "Nats-Last-Consumer") == "1016"
    assert value_of(headers, "Nats-Last-Stream") == "1024"
    assert value_of(headers, "Nats-Consumer-Stalled") is None
