"""Times on a command line, such as `30s` or `7d`."""

import re
from typing import Any, Final

import click

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)


def whole_seconds(ctx: click.Context, parameter: click.Parameter, value: float | None) -> int | None:
    """The time of an option, which has to be a whole number of seconds. Raises click.BadParameter."""
    if value is not None and not value.is_integer():
        raise click.BadParameter(f"{value:g} s is no whole number of seconds", ctx, parameter)
    return None if value is None else int(value)


class Duration(click.ParamType[float]):
    """A time such as `30s`, `10m`, `12h` or `7d`, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a time such as 30s, 10m, 12h or 7d", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]
