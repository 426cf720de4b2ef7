"""Options that may also be set by an environment variable."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def option_or_variable(*names: str, envvar: str, **how: Any) -> Callable[[_Command], _Command]:
    """`click.option` with the variable *envvar*. Its help names the variable, and the default where there is one."""
    shown = {} if how.get("default") in (None, "") else {"show_default": True}
    return click.option(*names, envvar=envvar, show_envvar=True, **shown | how)
