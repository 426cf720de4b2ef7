"""Names of uploads: whose, until when, and that nothing is removed that was just promised."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.uploads import (
    expiries,
    is_over,
    is_ref,
    is_upload,
    moment,
    owner_and_ref,
    owner_of,
    ref_of,
    upload_path,
)

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
SHA = "ab" * 32


def test_the_same_bytes_of_the_same_caller_have_one_reference() -> None:
    assert ref_of("a", SHA) == ref_of("a", SHA)
    assert is_ref(ref_of("a", SHA))


def test_another_caller_and_other_bytes_have_another_reference() -> None:
    assert len({ref_of("a", SHA), ref_of("b", SHA), ref_of("a", "cd" * 32)}) == 3


@pytest.mark.parametrize("text", ["", "img_", "img_" + "0" * 31, "img_" + "g" * 32, "img_" + "0" * 32 + "\n", "../x"])
def test_what_is_no_reference(text: str) -> None:
    assert not is_ref(text)


@given(
    uploaded=st.integers(0, 10**6),
    keep_s=st.integers(1, 10**5),
    later=st.integers(0, 3 * 10**5),
)
def test_an_upload_stays_as_long_as_was_said_and_is_found_until_then(uploaded: int, keep_s: int, later: int) -> None:
    then = NOW + timedelta(seconds=uploaded)
    until, _ = expiries(then, keep_s)
    path = upload_path(ref_of("a", SHA), "a", until)
    assert keep_s < until - then.timestamp() <= 2 * keep_s
    now = then + timedelta(seconds=later)
    if now < moment(until):
        # a reader looks for it there, and the janitor leaves it
        assert until in expiries(now, keep_s)
        assert not is_over(path, now)
    else:
        assert is_over(path, now)
        # and another upload of it is written under another name
        assert until not in expiries(now, keep_s)


def test_a_path_says_whose_it_is_and_no_more() -> None:
    ref = ref_of("a/b@c", SHA)
    path = upload_path(ref, "a/b@c", 1_700_000_000)
    assert owner_and_ref(path) == (owner_of("a/b@c"), ref)
    assert is_upload(path)
    assert "a/b@c" not in path


@pytest.mark.parametrize("path", ["images/x.y", "uploads/x", "uploads/img_1.2.3", "videos/uploads"])
def test_what_is_no_upload_is_never_over(path: str) -> None:
    assert owner_and_ref(path) is None
    assert not is_over(path, NOW)
