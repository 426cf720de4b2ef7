"""The limit on nesting is an exact number, the same for every interpreter, thread and parser."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.keys import UnreadableKey, decode_key
from contracts.nesting import NESTING_MAX, NestedTooDeeply, bounded, bounded_msgpack, decode_json, loads
from contracts.settings import SettingsError, parse_settings
from contracts.tasks import may_be_newer

FAR_TOO_DEEP = 200_000
OPENINGS = st.sampled_from([b"[", b'{"a":', b'[0,"]",', rb'{"\"}":{},"\\":'])
NAMES = st.text(alphabet='b[]{}"\\', max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**63) | st.floats(allow_nan=False) | st.text(alphabet='a[]{}"\\é'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='b[]{}"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def is_refused(bound: Callable[..., bytes], data: bytes, deepest: int) -> bool:
    try:
        assert bound(data, deepest=deepest) is data
    except NestedTooDeeply:
        return True
    return False


@given(JSON, st.integers(0, 4))
@example(["[[[[", {"\\": ['\\"']}], 3)
def test_json_is_refused_exactly_where_it_nests_deeper(value: Any, deepest: int) -> None:
    for data in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False, indent=1).encode()):
        assert is_refused(bounded, data, deepest) == (depth(value) > deepest)


@given(JSON, st.integers(0, 4))
@example([b"\x93" * 70_000, [b"\xdd" * 300, ["x" * 70_000, "y" * 300, *range(300)]]], 2)
@example([msgspec.msgpack.Ext(1, b"\x91" * size) for size in (1, 2, 4, 8, 16, 17, 300, 70_000)], 1)
@example([{str(key): key for key in range(size)} for size in (300, 66_000)] + [-(2**bits) for bits in range(64)], 2)
def test_msgpack_is_refused_exactly_where_it_nests_deeper(value: Any, deepest: int) -> None:
    assert is_refused(bounded_msgpack, msgspec.msgpack.encode(value), deepest) == (depth(value) > deepest)


@given(st.binary(max_size=60))
def test_the_check_survives_any_bytes(data: bytes) -> None:
    for bound in (bounded, bounded_msgpack):
        is_refused(bound, data, 3)


@given(
    st.lists(OPENINGS, min_size=NESTING_MAX + 1, max_size=NESTING_MAX + 1), st.sampled_from([b"", b"]", b'"', b"\xff"])
)
def test_nesting_that_never_closes_is_refused_as_well(openings: list[bytes], end: bytes) -> None:
    with pytest.raises(NestedTooDeeply, match="more than 64 objects and arrays"):
        loads(b"".join(openings) + end)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[1,{"x":'])
def test_every_reader_refuses_deep_nesting(opening: bytes) -> None:
    deep = b'{"id":"a","x":' + opening * FAR_TOO_DEEP
    for reader, error in (
        (loads, ValueError),
        (lambda data: decode_json(data, dict), msgspec.DecodeError),
        (parse_settings, SettingsError),
        (lambda data: decode_key("a", data), UnreadableKey),
    ):
        with pytest.raises(error):
            reader(deep)
    assert not may_be_newer("a", deep[: 400 * 1024])


def test_a_parser_that_asks_for_utf_8_gets_nothing_else() -> None:
    """The standard library's parser guesses UTF-16, in which the brackets would be counted wrongly."""
    with pytest.raises(ValueError, match="Expecting"):
        loads('["a"]'.encode("utf-16-le"))
    assert loads(b'\xef\xbb\xbf["a"]') == ["a"]
