"""Bounds how deeply JSON and MessagePack from outside may nest, before a parser sees them.

Parsers follow nesting by recursion. Their limit differs between interpreters: a number of frames on Python 3.11,
another number on 3.13, the rest of the thread's stack on 3.14. Here the limit is one number, and the check does not
recurse.
JSON and MessagePack from outside are parsed through this module only; ruff refuses the parsers' own functions
elsewhere.
"""

import json
import struct
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

NESTING_MAX: Final = 64
"""Levels of objects and arrays, one in another. Nothing that Warmlane writes or reads has ten."""

T = TypeVar("T")


class NestedTooDeeply(msgspec.DecodeError, ValueError):
    """Code that catches the errors of msgspec's or the standard library's parser catches this one too."""

    def __init__(self, deepest: int) -> None:
        super().__init__(f"nested too deeply: more than {deepest} objects and arrays, one in another")


def bounded(text: bytes, *, deepest: int = NESTING_MAX) -> bytes:
    """*text* (JSON in UTF-8, or bytes that claim to be), unchanged. Raises NestedTooDeeply.

    If the text is not JSON, the check is exact up to the place at which a parser gives up: no parser goes deeper.
    """
    if text.count(b"[") + text.count(b"{") <= deepest:  # as nearly always, and the quickest way to know
        return text
    depth = 0
    for bracket in _brackets(text):
        depth += 1 if bracket in b"[{" else -1
        if depth > deepest:
            raise NestedTooDeeply(deepest)
    return text


_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _brackets(text: bytes) -> bytes:
    """The brackets of *text* that stand outside of strings."""
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    return b"".join(unescaped.split(b'"')[::2]).translate(None, _BUT_BRACKETS)


class Decoder(Generic[T]):
    """Reads a *kind* from JSON, within the bound."""

    def __init__(self, kind: type[T]) -> None:
        self._decode: Callable[[bytes], T] = msgspec.json.Decoder(kind).decode  # noqa: TID251

    def decode(self, text: bytes) -> T:
        """The kind in *text*. Raises msgspec.DecodeError, and nothing else."""
        try:
            return self._decode(bounded(text))
        except UnicodeDecodeError as error:  # msgspec's answer to bad UTF-8 inside a string
            raise _not_utf_8(error) from None


class MsgpackDecoder(Generic[T]):
    """Reads a *kind*, or one of a union's, from MessagePack, within the bound."""

    def __init__(self, kind: Any) -> None:
        self._decode: Callable[[bytes], T] = msgspec.msgpack.Decoder(kind).decode  # noqa: TID251

    def decode(self, body: bytes) -> T:
        """The kind in *body*. Raises msgspec.DecodeError, and nothing else."""
        try:
            return self._decode(bounded_msgpack(body))
        except UnicodeDecodeError as error:
            raise _not_utf_8(error) from None


def _not_utf_8(error: UnicodeDecodeError) -> msgspec.DecodeError:
    return msgspec.DecodeError(f"not valid UTF-8: {error.reason}")


def decode_json(text: bytes, kind: type[T]) -> T:
    """The *kind* in *text*. Raises msgspec.DecodeError, and nothing else."""
    return Decoder(kind).decode(text)


def loads(text: bytes, **hooks: Any) -> Any:
    """The JSON in *text* (UTF-8, with a byte order mark or without), by the standard library and its *hooks*.

    Raises ValueError, and nothing else.
    """
    return json.loads(bounded(text).decode("utf-8-sig"), **hooks)  # noqa: TID251


def bounded_msgpack(body: bytes, *, deepest: int = NESTING_MAX) -> bytes:
    """*body* (one value in MessagePack, or bytes that claim to be), unchanged. Raises NestedTooDeeply.

    A body that ends too early, or goes on after the value, is left to the parser.
    """
    at, missing = 0, [1]  # how many values each container around this place still lacks
    while missing and at < len(body):
        missing[-1] -= 1
        at, values = _after(body, at)
        if values is not None:
            if len(missing) > deepest:
                raise NestedTooDeeply(deepest)
            missing.append(values)
        while missing and not missing[-1]:
            missing.pop()
    return body


# https://github.com/msgpack/msgpack/blob/master/spec.md: by the first byte, how many bytes follow it. For values that
# state their length: how they state it, and how many bytes an extension's type takes.
_FIXED: Final = {
    **{0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
    **{0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17},
}
_LENGTHS: Final = {
    **{0xC4: (">B", 0), 0xC5: (">H", 0), 0xC6: (">I", 0), 0xD9: (">B", 0), 0xDA: (">H", 0), 0xDB: (">I", 0)},
    **{0xC7: (">B", 1), 0xC8: (">H", 1), 0xC9: (">I", 1)},
}
_COUNTS: Final = {0xDC: (">H", 1), 0xDD: (">I", 1), 0xDE: (">H", 2), 0xDF: (">I", 2)}


def _after(body: bytes, at: int) -> tuple[int, int | None]:
    """Where the value that begins at *at* ends; for a container, where its first value begins, and how many values it
    has."""
    kind = body[at]
    at += 1
    if 0x80 <= kind <= 0x8F:
        return at, 2 * (kind & 0x0F)
    if 0x90 <= kind <= 0x9F:
        return at, kind & 0x0F
    if 0xA0 <= kind <= 0xBF:
        return at + (kind & 0x1F), None
    if kind in _LENGTHS:
        form, extra = _LENGTHS[kind]
        return at + struct.calcsize(form) + extra + _number(form, body, at), None
    if kind in _COUNTS:
        form, each = _COUNTS[kind]
        return at + struct.calcsize(form), each * _number(form, body, at)
    return at + _FIXED.get(kind, 0), None


def _number(form: str, body: bytes, at: int) -> int:
    size = struct.calcsize(form)
    return int(struct.unpack(form, body[at : at + size].ljust(size, b"\0"))[0])
