"""The body that makes an API key: what is accepted, and every mistake at once."""

from typing import Any

import pytest

from contracts.keys import DEFAULT_RATE_PER_S
from contracts.tasks import Priority
from gateway.http.key_request import FIELDS, KeyRequest, WrongKeyRequest, parse_key_request

LEAST: dict[str, Any] = {"caller": "alice", "scopes": ["read", "submit"]}


def test_what_is_left_out_is_as_the_command_has_it() -> None:
    assert parse_key_request(LEAST) == KeyRequest(caller="alice", scopes=("submit", "read"))
    assert parse_key_request(LEAST).rate_per_s == DEFAULT_RATE_PER_S
    assert parse_key_request(
        LEAST | {"rate_per_s": None, "highest_priority": "background", "max_waiting": 3, "max_running": None}
    ) == KeyRequest(
        caller="alice",
        scopes=("submit", "read"),
        rate_per_s=None,
        highest_priority=Priority.BACKGROUND,
        max_waiting=3,
    )
    assert parse_key_request(LEAST | {"rate_per_s": 2}).rate_per_s == 2.0


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("caller", "anonymous", "not_a_caller"),
        ("caller", "two words", "not_a_caller"),
        ("caller", 7, "not_a_caller"),
        ("scopes", [], "not_a_choice"),
        ("scopes", ["root"], "not_a_choice"),
        ("scopes", [["read"]], "not_a_choice"),
        ("scopes", "read", "not_a_choice"),
        ("rate_per_s", 0, "out_of_range"),
        ("rate_per_s", 10_001, "out_of_range"),
        ("rate_per_s", True, "out_of_range"),
        ("rate_per_s", "fast", "out_of_range"),
        ("highest_priority", "first", "not_a_choice"),
        ("max_waiting", 0, "out_of_range"),
        ("max_running", 1.0, "out_of_range"),
        ("max_running", False, "out_of_range"),
    ],
)
def test_a_wrong_field_is_named(name: str, value: Any, code: str) -> None:
    with pytest.raises(WrongKeyRequest) as raised:
        parse_key_request(LEAST | {name: value})
    [error] = raised.value.errors
    assert (error.pointer, error.code) == (f"/{name}", code)
    assert error.message.startswith(f"{name}: expected ")


def test_every_wrong_field_is_named_at_once() -> None:
    wrong = dict.fromkeys(FIELDS[2:], "x") | {"colour": "red", "scope": "read"}
    with pytest.raises(WrongKeyRequest) as raised:
        parse_key_request(wrong)
    assert [error.pointer for error in raised.value.errors] == [*(f"/{name}" for name in FIELDS), "", ""]
    assert [error.code for error in raised.value.errors[:2]] == ["missing", "missing"]
