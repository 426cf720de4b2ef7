"""Parses the body of `POST /admin/keys`: from a JSON object to the key that it asks for, or to every error. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from contracts.generation.errors import FieldError, missing, refused, shown
from contracts.keys import ANONYMOUS, DEFAULT_BURST_S, DEFAULT_RATE_PER_S, SCOPES, Scope, is_caller
from contracts.tasks import Priority

# The lowest rate is one request in DEFAULT_BURST_S. The highest is bounded: a gateway remembers the time of each
# request.
RATE_MIN_PER_S: Final = 1 / DEFAULT_BURST_S
RATE_MAX_PER_S: Final = 10_000.0
BOUND_MAX: Final = 1_000_000
FIELDS: Final = ("caller", "scopes", "rate_per_s", "highest_priority", "max_waiting", "max_running")


class KeyRequest(Struct, frozen=True, kw_only=True):
    """The key that is asked for, as `ApiKey` has it."""

    caller: str
    scopes: tuple[Scope, ...]
    rate_per_s: float | None = DEFAULT_RATE_PER_S
    highest_priority: Priority = Priority.INTERACTIVE
    max_waiting: int | None = None
    max_running: int | None = None


class WrongKeyRequest(ValueError):
    """*errors* says what is wrong with each field, in the order of FIELDS."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__(f"{len(errors)} fields are wrong")
        self.errors = errors


def parse_key_request(body: Mapping[str, Any]) -> KeyRequest:
    """The key that *body* asks for. Raises WrongKeyRequest with every error."""
    errors = [error for name in FIELDS if (error := _objection(name, body)) is not None]
    for name in sorted(set(body) - set(FIELDS)):
        message = f"{shown(name)}: no such field; the fields are {', '.join(FIELDS)}"
        errors.append(FieldError(pointer="", code="unknown_field", message=message, expected=list(FIELDS)))
    if errors:
        raise WrongKeyRequest(errors)
    rate_per_s = body.get("rate_per_s", DEFAULT_RATE_PER_S)
    return KeyRequest(
        caller=body["caller"],
        scopes=tuple(scope for scope in SCOPES if scope in body["scopes"]),
        rate_per_s=None if rate_per_s is None else float(rate_per_s),
        highest_priority=Priority(body.get("highest_priority", Priority.INTERACTIVE)),
        max_waiting=body.get("max_waiting"),
        max_running=body.get("max_running"),
    )


def _objection(name: str, body: Mapping[str, Any]) -> FieldError | None:
    code, expected = _EXPECTED[name]
    if name not in body:
        return missing(name, expected) if name in ("caller", "scopes") else None
    return None if _is_right(name, body[name]) else refused(name, code, expected, body[name])


_BOUND: Final = ("out_of_range", {"minimum": 1, "maximum": BOUND_MAX})
_EXPECTED: Final[Mapping[str, tuple[str, Any]]] = {
    "caller": ("not_a_caller", f"1 to 64 letters, digits and . _ @ -, and not {ANONYMOUS}"),
    "scopes": ("not_a_choice", list(SCOPES)),
    "rate_per_s": ("out_of_range", {"minimum": RATE_MIN_PER_S, "maximum": RATE_MAX_PER_S}),
    "highest_priority": ("not_a_choice", list(Priority)),
    "max_waiting": _BOUND,
    "max_running": _BOUND,
}


def _is_right(name: str, value: Any) -> bool:
    match name:
        case "caller":
            return isinstance(value, str) and is_caller(value)
        case "scopes":
            return isinstance(value, list) and bool(value) and all(each in SCOPES for each in value)
        case "highest_priority":
            return isinstance(value, str) and value in list(Priority)
        case "rate_per_s":
            return value is None or (_is_number(value, int | float) and RATE_MIN_PER_S <= value <= RATE_MAX_PER_S)
        case _:
            return value is None or (_is_number(value, int) and 1 <= value <= BOUND_MAX)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
