"""The class of a request: which class it names, and whether its key may name that. Pure.

The header is that of RFC 9218, whose parameters `u` and `i` browsers send with every request. A class is a parameter of
Warmlane's own there. An unknown parameter is ignored, as the RFC requires.
"""

from collections.abc import Iterable

from werkzeug.http import parse_list_header

from contracts.keys import ApiKey
from contracts.tasks import Priority
from gateway.http.problems import ProblemError


def named_in(lines: Iterable[str]) -> Priority | None:
    """The class that the *lines* of the header `Priority` name first; None where they name none."""
    for line in lines:
        for item in parse_list_header(line):
            name = item.partition(";")[0].strip()
            if name in list(Priority):
                return Priority(name)
    return None


def allowed_by(key: ApiKey | None) -> Priority:
    """The highest class that requests with *key* may name."""
    return Priority.INTERACTIVE if key is None else key.highest_priority


def default_of(key: ApiKey | None) -> Priority:
    """The class of a request with *key* that names none."""
    return max(Priority.STANDARD, allowed_by(key), key=lambda priority: priority.rank)


def class_of(asked: Priority | None, lines: Iterable[str], key: ApiKey | None) -> Priority:
    """The class of a request whose body asks for *asked*, with these *lines* of `Priority`, sent with *key*.

    1. The body names a class, or else the header does: that class. Raises the problem `priority_forbidden` where it is
       higher than the *key* may name.
    2. Neither does: `standard`, or the highest class of the key where that is lower.
    """
    highest = allowed_by(key)
    wanted = asked or named_in(lines)
    if wanted is None:  # 2
        return default_of(key)
    if wanted.rank < highest.rank:
        raise ProblemError(
            "priority_forbidden",
            f"this key may name {highest} at most, and not {wanted}; leave priority out, or name {highest} or a lower "
            "class",
        )
    return wanted  # 1
