"""What is wrong with a request, field by field, in the words that a client reads.

No error repeats a prompt or an image.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from msgspec import UNSET, Struct

# How much of a caller's text an error repeats.
SHOWN_CHARS_MAX: Final = 64
# A body with many unknown fields is answered with the first of them and the number of the others.
UNKNOWN_FIELDS_MAX: Final = 32


class FieldError(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One wrong field: a JSON pointer to it, a code for programs, what was expected and what came."""

    pointer: str
    code: str
    message: str
    expected: Any = None
    got: Any = UNSET  # absent when nothing came; null when null came


class InvalidRequest(ValueError):
    """The request breaks constraints (422). `errors` lists every one of them, in a fixed order."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = errors


def missing(name: str, expected: Any) -> FieldError:
    """The field *name* is needed, and did not come."""
    message = f"{name}: missing; expected {_phrase(expected)}"
    return FieldError(pointer=f"/{name}", code="missing", message=message, expected=expected)


def wrong_type(name: str, expected: Any, value: Any) -> FieldError:
    """The field *name* came as *value*, which is not of the type *expected*."""
    return refused(name, "wrong_type", expected, value)


def refused(name: str, code: str, expected: Any, value: Any) -> FieldError:
    """The field *name* came as *value*, and *expected* is what it may be."""
    got = shown(value)
    message = f"{name}: expected {_phrase(expected)}, got {_json_text(got)}"
    return FieldError(pointer=f"/{name}", code=code, message=message, expected=expected, got=got)


def unknown_fields(
    sent: Iterable[str], fields: Sequence[str], *, meant: Callable[[str], str | None] = lambda _: None
) -> Iterator[FieldError]:
    """The names in *sent* that are none of *fields*, in alphabetical order, and how many more there are beyond
    UNKNOWN_FIELDS_MAX. *meant* returns the field that a client probably meant by a name."""
    unknown = sorted(set(sent).difference(fields))
    if not unknown:
        return
    hint = f"the fields are {', '.join(fields)}"
    for name in unknown[:UNKNOWN_FIELDS_MAX]:
        suggestion = meant(name)
        yield FieldError(
            pointer="/" + shown(name).replace("~", "~0").replace("/", "~1"),
            code="unknown_field",
            message=f"{shown(name)}: no such field; {f'did you mean {suggestion!r}?' if suggestion else hint}",
            expected=suggestion or list(fields),
        )
    if len(unknown) > UNKNOWN_FIELDS_MAX:
        message = f"{len(unknown) - UNKNOWN_FIELDS_MAX} more unknown fields; {hint}"
        yield FieldError(pointer="", code="unknown_field", message=message, expected=list(fields))


def _phrase(expected: Any) -> str:
    match expected:
        case {"minimum": low, "maximum": high}:
            return f"{low} to {high}"
        case {"multiple_of": step, "plus": offset}:
            return f"{step} k + {offset}"
        case {"multiple_of": step}:
            return f"a multiple of {step}"
        case str():
            return expected
        case _:
            return _json_text(expected)


def _json_text(value: Any) -> str:
    return json.dumps(value)


def shown(value: Any) -> Any:
    """*value* as an error may repeat it: short, and never the content of a container."""
    match value:
        case str():
            return value if len(value) <= SHOWN_CHARS_MAX else f"string of {len(value)} characters"
        case list():
            return "array"
        case dict():
            return "object"
        case int() if abs(value) > 2**63:
            return "integer of more than 63 bits"
        case float() if not math.isfinite(value):  # 1e999 is valid JSON
            return "number too large"
        case _:
            return value
