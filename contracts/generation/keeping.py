"""How long a request asks to keep its task once it has ended. Pure."""

from typing import Any, Final

from msgspec import UNSET

from contracts.generation.errors import FieldError, refused, wrong_type
from contracts.tasks import KEEP_MAX_S, KEEP_MIN_S

KEEP_FIELD: Final = "keep_s"


def keep_bound_s(operators_s: float | None) -> int:
    """The longest that a request may ask for, in whole seconds, where the operator keeps tasks for *operators_s*."""
    return KEEP_MAX_S if operators_s is None else min(int(operators_s), KEEP_MAX_S)


def keep_of(name: str, value: Any, operators_s: float | None, errors: list[FieldError]) -> int | None:
    """The seconds at the field *name*; None where the request leaves it to the operator, who keeps tasks for
    *operators_s*. What is wrong with them is added to *errors*."""
    if value is UNSET or value is None:
        return None
    if type(value) is not int:  # bool is an int to isinstance
        errors.append(wrong_type(name, "whole seconds", value))
        return None
    most_s = keep_bound_s(operators_s)
    if KEEP_MIN_S <= value <= most_s:
        return value
    if most_s < KEEP_MIN_S:
        errors.append(refused(name, "out_of_range", f"nothing: every task is kept for {most_s} s here", value))
    else:
        errors.append(refused(name, "out_of_range", {"minimum": KEEP_MIN_S, "maximum": most_s}, value))
    return None
