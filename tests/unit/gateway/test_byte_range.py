import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.http.ranges import RangeNotSatisfiable, content_range, parse_range, range_applies

SIZE_BYTES = 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param("bytes=0-0", (0, 0), id="first-byte"),
        pytest.param("bytes=0-499", (0, 499), id="first-half"),
        pytest.param("bytes=500-", (500, 999), id="open-end"),
        pytest.param("bytes=999-", (999, 999), id="last-byte"),
        pytest.param("bytes=500-5000", (500, 999), id="end-beyond-the-file"),
        pytest.param("bytes=-1", (999, 999), id="suffix-1"),
        pytest.param("bytes=-500", (500, 999), id="suffix"),
        pytest.param("bytes=-5000", (0, 999), id="suffix-longer-than-the-file"),
        pytest.param("Bytes=0-9", (0, 9), id="units-ignore-case"),
        pytest.param("bytes=0000000000000000000000001-9", (1, 9), id="leading-zeros"),
        pytest.param(f"bytes=0-{'9' * 5000}", (0, 999), id="end-of-5000-digits"),
        pytest.param(f"bytes=-{'9' * 5000}", (0, 999), id="suffix-of-5000-digits"),
    ],
)
def test_one_range(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, SIZE_BYTES) == expected


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=1-2,4-5",
        "bytes=0-0,",
        "bytes=0 - 5",
        "bytes=0x1-5",
        "bytes=+1-5",
        "bytes=--5",
        "bytes=٣-٩",
        "frames=0-5",
        "0-5",
    ],
)
def test_what_is_not_one_range_means_the_whole_file(header: str | None) -> None:
    assert parse_range(header, SIZE_BYTES) is None


@pytest.mark.parametrize(
    ("header", "size_bytes"),
    [
        pytest.param("bytes=1000-", 1000, id="behind-the-last-byte"),
        pytest.param("bytes=1000-1001", 1000, id="behind-the-last-byte-with-an-end"),
        pytest.param("bytes=-0", 1000, id="suffix-0"),
        pytest.param("bytes=0-", 0, id="empty-file"),
        pytest.param(f"bytes={'9' * 5000}-", 9, id="start-of-5000-digits"),
    ],
)
def test_beyond_the_file(header: str, size_bytes: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refusal:
        parse_range(header, size_bytes)
    assert refusal.value.content_range == f"bytes */{size_bytes}"


@given(st.text() | st.from_regex(r"bytes=[0-9]{0,30}-[0-9]{0,30}(,.*)?", fullmatch=True), st.integers(0, 10**12))
@example("bytes=-5", 0)
def test_any_header_gives_bytes_of_the_file_or_nothing(header: str, size_bytes: int) -> None:
    try:
        found = parse_range(header, size_bytes)
    except RangeNotSatisfiable:
        return
    if found is not None:
        first, last = found
        assert 0 <= first <= last < size_bytes


@given(st.binary(min_size=1, max_size=50), st.data())
def test_the_bytes_are_those_that_were_asked_for(content: bytes, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(content) - 1))
    last = data.draw(st.integers(first, len(content) + 9))
    suffix = data.draw(st.integers(1, len(content) + 9))
    for header, expected in [
        (f"bytes={first}-{last}", content[first : last + 1]),
        (f"bytes={first}-", content[first:]),
        (f"bytes=-{suffix}", content[-suffix:]),
    ]:
        found = parse_range(header, len(content))
        assert found is not None
        assert content[found[0] : found[1] + 1] == expected


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [
        (None, True),
        ('"abc"', True),
        (' "abc" ', True),
        ('W/"abc"', False),
        ('"other"', False),
        ("Sun, 01 Mar 2026 12:00:00 GMT", False),
    ],
)
def test_if_range(if_range: str | None, applies: bool) -> None:
    assert range_applies(if_range, '"abc"') is applies


def test_content_range() -> None:
    assert content_range(0, 9, 100) == "bytes 0-9/100"
