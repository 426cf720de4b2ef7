"""API keys as data: their form, what is stored, how they are compared, and that no secret is shown."""

import hmac
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from contracts.keys import (
    ApiKey,
    Presented,
    Scope,
    UnreadableKey,
    decode_key,
    encode_key,
    has_scope,
    is_caller,
    is_valid,
    parse_presented,
    sha256_of,
)
from ops.commands.keys import shown, table_of

SECRET = "5e" * 32
PRESENTED = Presented("0f6a3c9d21be", SECRET)
KEY = ApiKey(
    id=PRESENTED.id,
    caller="alice",
    scopes=("submit", "read"),
    secret_sha256=sha256_of(SECRET),
    created_at=datetime(2026, 3, 1, tzinfo=UTC),
)
REVOKED = replace(KEY, revoked_at=datetime(2026, 3, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    ("presented", "stored", "valid"),
    [
        pytest.param(PRESENTED, KEY, True, id="the-key"),
        pytest.param(Presented(PRESENTED.id, "5f" * 32), KEY, False, id="another-secret"),
        pytest.param(PRESENTED, REVOKED, False, id="revoked"),
        pytest.param(PRESENTED, None, False, id="unknown"),
    ],
)
def test_who_is_let_in(
    presented: Presented, stored: ApiKey | None, valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for an id that does not exist, hashes of equal length are compared in constant time."""
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert is_valid(presented, stored) is valid
    assert compared == [(64, 64)]


def test_what_is_presented_can_be_read_back_and_hides_in_a_repr() -> None:
    assert parse_presented(PRESENTED.text) == PRESENTED
    for text in (repr(PRESENTED), str(PRESENTED), f"{PRESENTED}", repr([PRESENTED])):
        assert SECRET not in text
        assert PRESENTED.id in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        f"wl_{PRESENTED.id}",
        f"wl_{PRESENTED.id}_",
        f"wl_{PRESENTED.id}_{SECRET[:-1]}",
        f"wl_{PRESENTED.id}_{SECRET}a",
        f"wl_{PRESENTED.id}_{SECRET}\n",
        f"WL_{PRESENTED.id}_{SECRET}",
        f"wl_lanes.anisora_{SECRET}",
        f"wl_{PRESENTED.id}_{'é' * 64}",
    ],
)
def test_what_is_no_key(text: str) -> None:
    assert parse_presented(text) is None


def test_admin_stands_for_every_scope_and_no_other_does() -> None:
    scopes: tuple[Scope, ...] = ("submit", "read", "admin")
    assert [has_scope(("admin",), scope) for scope in scopes] == [True, True, True]
    assert [has_scope(("submit",), scope) for scope in scopes] == [True, False, False]
    assert [has_scope(("read",), scope) for scope in scopes] == [False, True, False]


def test_a_stored_key_can_be_read_back() -> None:
    assert decode_key(KEY.id, encode_key(KEY)) == KEY
    assert decode_key(KEY.id, encode_key(REVOKED)) == REVOKED
    later = msgspec.json.encode(msgspec.to_builtins(KEY) | {"a_field_of_a_later_version": 1})
    assert decode_key(KEY.id, later) == KEY


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"scopes": ["submit", "everything"]}, id="unknown-scope"),
        pytest.param({"scopes": []}, id="no-scope"),
        pytest.param({"caller": "anonymous"}, id="anonymous"),
        pytest.param({"caller": "two words"}, id="caller"),
        pytest.param({"secret_sha256": ""}, id="no-hash"),
        pytest.param({"secret_sha256": "0" * 63 + "\n"}, id="hash-with-newline"),
        pytest.param({"rate_per_s": 0}, id="rate"),
        pytest.param({"burst_s": 0}, id="burst"),
        pytest.param({"id": "0f6a3c9d21bf"}, id="another-id"),
        pytest.param({"revoked_at": "yesterday"}, id="revoked-some-time"),
    ],
)
def test_a_record_that_is_no_key(changed: dict[str, Any]) -> None:
    data = msgspec.json.encode(msgspec.to_builtins(KEY) | changed)
    with pytest.raises(UnreadableKey):
        decode_key(KEY.id, data)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"id":"\xff"}', b"[" * 100_000])
def test_bytes_that_are_no_key(data: bytes) -> None:
    with pytest.raises(UnreadableKey):
        decode_key(KEY.id, data)


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("alice", True),
        ("a", True),
        ("team-7.alice_b@example.org", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("anonymous", False),
        ("anonymous2", True),
        ("two words", False),
        ("alice\n", False),
        ("zoë", False),
    ],
)
def test_names_of_callers(name: str, usable: bool) -> None:
    assert is_caller(name) is usable


@pytest.mark.parametrize(
    ("rate_per_s", "burst_s", "burst"), [(50, 10, 500), (0.1, 10, 1), (2.3, 10, 23), (0.01, 10, 1), (None, 10, None)]
)
def test_how_many_requests_a_burst_holds(rate_per_s: float | None, burst_s: int, burst: int | None) -> None:
    assert replace(KEY, rate_per_s=rate_per_s, burst_s=burst_s).burst == burst


def test_what_is_listed_holds_neither_secret_nor_hash() -> None:
    assert set(shown(KEY)) == {
        "id",
        "caller",
        "scopes",
        "created_at",
        "revoked_at",
        "rate_per_s",
        "burst_s",
        "highest_priority",
        "max_waiting",
        "max_running",
    }
    assert KEY.secret_sha256 not in str(shown(KEY))
    cells = [cell for column in table_of([KEY, REVOKED]).columns for cell in column.cells]
    assert KEY.secret_sha256 not in str(cells)
    assert "2026-03-02 00:00:00" in cells
