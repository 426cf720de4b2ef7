"""Query parameters: a route takes those that its handler declares, each once unless it is a list; any other is refused.

To ignore one would be worse: `?limt=5` would list twenty tasks, and the client would not see why.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import parse_qsl

from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.types import Scope
from msgspec import Struct

from gateway.http.problems import QUERY, ProblemError

_SHOWN_CHARS: Final = 64


class Query(Struct, frozen=True):
    """The parameters that a route takes, by name; True for one that may come several times. *expected* has the allowed
    values of those that have limits, and of those that must be one of some words."""

    takes: Mapping[str, bool]
    expected: Mapping[str, str] = {}


def objection(query: Query, sent: Mapping[str, int]) -> str | None:
    """What is wrong with a query that has each name as many times as *sent* says; None if nothing is. Pure."""
    for name, times in sent.items():
        if name not in query.takes:
            known = ", ".join(sorted(query.takes)) or "none"
            return f"{name[:_SHOWN_CHARS]!a}: no such query parameter; this path takes {known}"
        if times > 1 and not query.takes[name]:
            return f"{name}: {times} times in the query; send it once"
    return None


def declare_query(handler: HTTPRouteHandler) -> None:
    """Stores in *handler* which parameters it declares, for `require_known_query`. A route without that takes any."""
    takes: dict[str, bool] = {}
    expected: dict[str, str] = {}
    for name, field in handler.parsed_fn_signature.parameters.items():
        declared = field.kwarg_definition
        if isinstance(declared, QueryParameter):
            takes[declared.name or name] = field.is_non_string_sequence
            if declared.ge is not None and declared.le is not None:
                kind = "an integer" if field.annotation is int else "a number"
                expected[declared.name or name] = f"expected {kind} from {declared.ge:g} to {declared.le:g}"
            *others, last = _words(field.annotation) or ("",)
            if others:
                expected[declared.name or name] = f"expected {', '.join(others)} or {last}"
    handler.opt[QUERY] = Query(takes, expected)


def _words(annotation: Any) -> tuple[str, ...]:
    """The words of which a parameter must be one; none where it may be any text, or is not a text."""
    kinds = (annotation, *get_args(annotation))
    return tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))


def require_known_query(scope: Scope) -> None:
    """Raises the problem `invalid_query` for a parameter that the route does not take, or takes only once."""
    if not scope["query_string"]:
        return
    query: Query | None = scope["route_handler"].opt.get(QUERY)
    if query is None:
        return
    sent = Counter(name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    detail = objection(query, sent)
    if detail is not None:
        raise ProblemError("invalid_query", detail)
