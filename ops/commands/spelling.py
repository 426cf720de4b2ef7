"""Input that is not UTF-8, and text that a terminal cannot show: neither ends a command with a traceback.

The name of a file may be any bytes; Python holds bytes that are not UTF-8 as lone surrogates. They are allowed where
they name a file, and nowhere else: no JSON, no subject and no header can carry them.
"""

import codecs
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import click

SHOWN: Final = "warmlane-shown"
_GUARDED: Final[set[click.Command]] = set()


def shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """For output: the bytes of a file's name stay as they are. A character that the encoding lacks becomes an escape
    such as `\\u2026`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in text):
        return bytes(ord(letter) - 0xDC00 for letter in text), error.end
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        return shown(UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason))
    return codecs.backslashreplace_errors(error)


def show_everything() -> None:
    """From now on, no printing raises UnicodeEncodeError, whatever the locale and PYTHONIOENCODING say."""
    codecs.register_error(SHOWN, shown)
    for stream in (sys.stdout, sys.stderr):
        # an embedding program, or a test, may have put something else there
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=SHOWN)


def guarded(command: click.Command) -> click.Command:
    """Makes *command*, and those below it, refuse what is not UTF-8 in anything but the name of a file."""
    if command in _GUARDED:
        return command
    _GUARDED.add(command)
    if command.callback is not None:
        command.callback = _refusing(command.callback)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            guarded(below)
    return command


def _refusing(callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def checked(*args: Any, **options: Any) -> Any:
        ctx = click.get_current_context()
        for parameter in ctx.command.params:
            if not isinstance(parameter.type, click.Path | click.File):
                require_text(ctx, parameter, ctx.params.get(parameter.name or ""))
        return callback(*args, **options)

    return checked


def require_text(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    """Raises click.BadParameter for a *value* with text in it that is not UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise click.BadParameter(
                f"not UTF-8 at character {error.start + 1}; type it anew, or convert it with iconv", ctx, parameter
            ) from error
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for part in value:
            require_text(ctx, parameter, part)
