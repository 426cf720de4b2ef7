"""How a log line shows a value. Pure."""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from typing import Any, Final

from msgspec import Struct

# Nothing that is logged should be deeper or longer. A value that is so by mistake is cut, and does not fill the disk.
DEPTH_MAX: Final = 6
ITEMS_MAX: Final = 100
CHARS_MAX: Final = 16_384
BYTES_MAX: Final = 64
# Up to here readers of JSON keep whole numbers exact.
_EXACT_MAX: Final = 2**63


def plain(value: Any, depth: int = 0) -> Any:
    """*value* in types that JSON has: moments in ISO 8601 (UTC, with Z), times in seconds, enums by their value,
    structs and mappings as objects, exceptions as `Class: text`; whatever has no other form, by its repr.

    It never raises: where a value's own code does, the log states that instead of the value.
    """
    kind = type(value)
    if (kind is str and len(value) <= CHARS_MAX) or kind is bool or value is None:  # most values are one of these
        return value
    try:
        return _plain(value, depth)
    except Exception as error:
        return f"<{type(value).__name__}, whose text raises {type(error).__name__}>"


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if isinstance(value, int):
        return int(value) if abs(value) < _EXACT_MAX else str(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes(bytes(value))
    if isinstance(value, BaseException):
        text = _cut(str(value))
        return f"{type(value).__name__}: {text}" if text else type(value).__name__
    if isinstance(value, type):
        return value.__qualname__
    if not isinstance(value, str) and (inner := _inner(value)) is not None:
        return f"<{type(value).__name__}>" if depth >= DEPTH_MAX else _held(inner, depth + 1)
    return _cut(str(value) if isinstance(value, str) or _says_itself(value) else repr(value))


def _inner(value: Any) -> Mapping[Any, Any] | Iterable[Any] | None:
    """What is in *value*, by name or one after the other; None for what holds nothing."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ in {
        "deque",
        "dict_keys",
        "dict_values",
    }:
        return value  # type: ignore[no-any-return]  # the last three are iterable, too
    return None


def _held(inner: Mapping[Any, Any] | Iterable[Any], depth: int) -> Any:
    if isinstance(inner, dict | Mapping):
        named = list(inner.items())
        held = {_key(name): plain(value, depth) for name, value in named[:ITEMS_MAX]}
        return held if len(named) <= ITEMS_MAX else held | {"…": f"{len(named) - ITEMS_MAX} more"}
    listed = list(inner)
    logged = [plain(value, depth) for value in listed[:ITEMS_MAX]]
    return logged if len(listed) <= ITEMS_MAX else [*logged, f"… {len(listed) - ITEMS_MAX} more"]


def _key(name: Any) -> str:
    if type(name) is str:
        return name
    logged = plain(name)
    return logged if isinstance(logged, str) else str(logged)


def _moment(value: datetime) -> str:
    # a moment without a zone is logged as it is: nobody knows which zone it means
    return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _bytes(value: bytes) -> str:
    text = value[:BYTES_MAX].decode("utf-8", "backslashreplace")
    return text if len(value) <= BYTES_MAX else f"{text}… ({len(value)} bytes)"


def _cut(text: str) -> str:
    return str(text) if len(text) <= CHARS_MAX else f"{text[:CHARS_MAX]}… ({len(text)} characters)"


def _says_itself(value: Any) -> bool:
    """Whether *value* has a text form of its own, as a path, a UUID or a Decimal has."""
    found = next(kind for kind in type(value).__mro__ if "__str__" in vars(kind))
    return found is not object
