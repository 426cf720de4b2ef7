import pytest

from gateway.http.event_streams import Streams, TooManyStreams


def test_every_caller_has_a_bound_and_all_have_one() -> None:
    streams = Streams(per_caller_max=2, per_gateway_max=3)
    first = [streams.take("one"), streams.take("one")]
    with pytest.raises(TooManyStreams, match="2 event streams are open"):
        streams.take("one")
    other = streams.take("other")
    with pytest.raises(TooManyStreams, match="this gateway has 3"):
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
    assert not streams._open  # nothing is kept of callers that have none
