"""The class of a request: its body, the header `Priority` (RFC 9218), and what its key may name."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.keys import ApiKey
from contracts.tasks import Priority
from gateway.http.priority import class_of, named_in
from gateway.http.problems import ProblemError

INTERACTIVE, STANDARD, BACKGROUND = Priority


def key(highest: Priority) -> ApiKey:
    return ApiKey(
        id="0f6a3c9d21be",
        caller="alice",
        scopes=("submit",),
        secret_sha256="0" * 64,
        created_at=datetime(2026, 3, 1, tzinfo=UTC),
        highest_priority=highest,
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["background"], BACKGROUND),
        (["u=1, i"], None),
        (["u=1, interactive, i"], INTERACTIVE),
        (["u=5", "background"], BACKGROUND),
        (["background, interactive"], BACKGROUND),
        (["background;x=1"], BACKGROUND),
        (["background=?1"], None),
        (["Background"], None),
        (["urgent"], None),
        (["", ",", ";", '"'], None),
    ],
)
def test_what_the_header_names(lines: list[str], expected: Priority | None) -> None:
    assert named_in(lines) is expected


@given(st.lists(st.text()))
def test_no_header_is_an_error(lines: list[str]) -> None:
    named_in(lines)


@pytest.mark.parametrize(
    ("asked", "lines", "highest", "expected"),
    [
        pytest.param(None, [], None, STANDARD, id="2-without-a-key"),
        pytest.param(None, [], INTERACTIVE, STANDARD, id="2-nobody-is-more-than-standard-unasked"),
        pytest.param(None, ["u=1"], BACKGROUND, BACKGROUND, id="2-as-high-as-the-key"),
        pytest.param(None, ["background"], None, BACKGROUND, id="1-the-header"),
        pytest.param(INTERACTIVE, ["background"], None, INTERACTIVE, id="1-the-body-first"),
        pytest.param(STANDARD, [], STANDARD, STANDARD, id="1-just-allowed"),
        pytest.param(BACKGROUND, [], STANDARD, BACKGROUND, id="1-a-lower-one"),
    ],
)
def test_the_class_of_a_request(
    asked: Priority | None, lines: list[str], highest: Priority | None, expected: Priority
) -> None:
    assert class_of(asked, lines, None if highest is None else key(highest)) is expected


@pytest.mark.parametrize(("asked", "lines"), [(INTERACTIVE, []), (None, ["interactive"])])
def test_a_higher_class_than_the_key_may_name_is_refused(asked: Priority | None, lines: list[str]) -> None:
    with pytest.raises(ProblemError) as refused:
        class_of(asked, lines, key(STANDARD))
    problem = refused.value.problem
    assert (problem.status, problem.code) == (403, "priority_forbidden")
    assert "may name standard at most" in problem.detail
    assert "leave priority out" in problem.detail
