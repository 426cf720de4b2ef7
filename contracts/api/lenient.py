"""How a client reads the answers of a gateway of another version.

1. A field that it does not know is ignored.
2. A value from a list (an enum, a Literal) may be any word: lists grow.
3. A missing field is null if it may be null, and otherwise 0, false or empty. A task without a class is `standard`:
   gateways of an earlier version have no other. Other strings, moments and objects must be there: without them the
   answer is not a gateway's.
"""

import types
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct

from contracts.tasks import Priority

T = TypeVar("T")
# The value of a figure, a flag, a list or a class that is missing.
_NOTHING: dict[Any, Any] = {
    int: 0,
    float: 0.0,
    bool: False,
    tuple: (),
    list: [],
    dict: {},
    Priority: Priority.STANDARD.value,
}


def lenient(kind: type[T]) -> type[T]:
    """*kind* as the rules above read it: for a struct, a struct that is derived from it, with all its fields read
    leniently.

    The value of an enum is a plain `str` there, and not a member: compare it with `==`, and use nothing else of it.
    """
    found: type[T] = _lenient(cast(Any, kind))
    return found


@cache
def _lenient(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _lenient_struct(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return str
    if origin is Annotated:  # limits bind the gateway, not the reader
        return _lenient(arguments[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(_lenient(each) for each in arguments)]  # noqa: UP007  # of as many as there are
    if origin in (tuple, list, dict):
        return origin[tuple(each if each is ... else _lenient(each) for each in arguments)]
    return kind


def _lenient_struct(kind: type[Struct]) -> type[Struct]:
    fields = []
    for field in msgspec.structs.fields(kind):
        given: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory}
        if field.required:
            given["default"] = _when_missing(field.type)
        fields.append((field.name, _lenient(field.type), msgspec.field(name=field.encode_name, **given)))
    options: dict[str, Any] = {"frozen": True, "kw_only": True, "forbid_unknown_fields": False}
    return msgspec.defstruct(kind.__name__, fields, bases=(kind,), module=kind.__module__, **options)


def _when_missing(kind: Any) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        return _when_missing(get_args(kind)[0])
    if origin in (Union, types.UnionType) and type(None) in get_args(kind):
        return None
    return _NOTHING.get(origin or kind, NODEFAULT)
