"""The gateway's options for when its degraded queue is too long (ADR 0039)."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from contracts.settings import Catalog
from ops.commands.variables import option_or_variable


class OverloadOptions(Struct, frozen=True):
    """What the command line sets of `overload` in the settings; None keeps the value of the settings."""

    displace: bool | None = None
    refuse_expected: bool | None = None

    def on(self, catalog: Catalog) -> Catalog:
        """*catalog* with these options applied."""
        return replace(catalog, overload=replace(catalog.overload, **self._said()))

    def arguments(self) -> list[str]:
        """These settings as options for the command line of another process."""
        return [f"--{'' if said else 'no-'}{name.replace('_', '-')}" for name, said in self._said().items()]

    def _said(self) -> dict[str, bool]:
        return {name: said for name, said in asdict(self).items() if said is not None}


def overload_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--displace` and `--refuse-expected`; the command receives them as *overload*, an `OverloadOptions`."""

    @option_or_variable(
        "--displace/--no-displace",
        "displace",
        envvar="WARMLANE_DISPLACE",
        default=None,
        help="Where the degraded queue is full, let a request of a higher class take the place of a waiting one of a "
        "lower class. [default: as the settings say, no]",
    )
    @option_or_variable(
        "--refuse-expected/--no-refuse-expected",
        "refuse_expected",
        envvar="WARMLANE_REFUSE_EXPECTED",
        default=None,
        help="Refuse at once what will almost certainly not start on the degraded worker within its wait, by what was "
        "measured. [default: as the settings say, no]",
    )
    @wraps(function)
    def command(*args: Any, displace: bool | None, refuse_expected: bool | None, **options: Any) -> Any:
        return function(*args, overload=OverloadOptions(displace, refuse_expected), **options)

    return command
