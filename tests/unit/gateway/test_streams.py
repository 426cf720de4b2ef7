import json

import pytest

from gateway.boards.open_streams import Streams, TooManyStreams
from gateway.http.event_streams import STILL_THERE, beginning, event
from tests.kit.event_source import EventSource, Message


def test_the_heartbeat_calls_no_handler() -> None:
    """An empty line of data would call a page's `onmessage` with an empty text, which is not JSON."""
    source = EventSource()
    data = json.dumps({"prompt": "one\r\ntwo\u2028"}).encode()
    assert source.read(beginning()) == []
    assert source.read(STILL_THERE) == []
    assert source.read(event("task", data, id=7) + STILL_THERE * 3) == [Message("task", data.decode(), "7")]
    assert source.read(STILL_THERE) == []
    assert (source.last_id, source.retry_ms) == ("7", 2_000)
    # what the heartbeat was, and what the reader here makes of it, as a browser does
    assert EventSource().read(b": still there\r\nevent: x\r\ndata: \r\n\r\n") == [Message("x", "", "")]


def test_every_caller_has_a_bound_and_all_have_one() -> None:
    streams = Streams(per_caller_max=2, per_gateway_max=3)
    first = [streams.take("one"), streams.take("one")]
    with pytest.raises(TooManyStreams, match="2 event streams are open"):
        streams.take("one")
    other = streams.take("other")
    with pytest.raises(TooManyStreams, match="3 event streams are open already, of all"):
        streams.take("another")
    first[0].free()
    first[0].free()  # changes nothing
    assert len(streams) == 2
    streams.take("another")
    with pytest.raises(TooManyStreams):
        streams.take("one")
    other.free()
    streams.take("one")


def test_a_place_is_free_however_its_block_ends() -> None:
    streams = Streams()
    with pytest.raises(ValueError, match="x"), streams.take("one").held():
        raise ValueError("x")
    assert len(streams) == 0
    assert not streams._open  # nothing is kept for callers without streams
