"""One TOML file with the options of every part: `--config FILE`, or WARMLANE_CONFIG.

A key is the name of an option that has an environment variable, so there is no second list of what can be set. The top
level is for what parts have in common; a table is for one part, and `[lane.NAME]` for one lane. An option takes
precedence over its variable, and the variable over the file. Relative paths start, as on the command line, from the
current folder.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

CONFIG_VARIABLE: Final = "WARMLANE_CONFIG"
DECIDED_VARIABLE: Final = "WARMLANE_CONFIG_DECIDED"
"""The variable in which a process names, for those that it starts, the keys that it has decided for them."""
# If a part does not have a key of the top level, the parts are searched for it in this order. The gateway is last: it
# imports most.
PARTS: Final = ("up", "nats-server", "provision", "supervisor", "lane", "degraded", "gateway")
NAMED_PARTS: Final = frozenset({"lane", "degraded"})
# `warmlane up` has no port for metrics, and its parts could not share one.
_NEVER_INHERITED: Final = frozenset({"metrics-port", "metrics-host"})
_MAX_BYTES: Final = 1024 * 1024
_PASSWORD: Final = re.compile(r"(?<=://)([^:/@\s,]*):([^@/\s,]+)@")

CommandOf = Callable[[str], click.Command | None]
Place = tuple[str, ...]
"""A key with the tables that it is in."""


class ConfigError(click.ClickException):
    """A file that cannot be used; the text names the file, the line, and what is expected."""

    exit_code = 2


class FromFile(Struct, frozen=True):
    """A value that the file gives, and its place in it."""

    value: Any
    place: Place


def masked(text: str) -> str:
    """*text* without the passwords of addresses in it."""
    return _PASSWORD.sub(r"\1:***@", text)


def keys_of(command: click.Command) -> dict[str, click.Option]:
    """What a file may hold for *command*: the names of its options that have a variable."""
    return {
        max(option.opts, key=len).removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option) and option.envvar and not isinstance(option, ConfigOption)
    }


class ConfigFile:
    """The file at *path*, read. Raises ConfigError if it cannot be read, or if others may read a password in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise ConfigError(f"{path}: more than 1 MiB is no configuration")
            self._text = content.decode()
            self._tables: dict[str, Any] = tomllib.loads(self._text)
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from error
        if mode & stat.S_IROTH and _PASSWORD.search(self._text):
            raise ConfigError(f"{path}: it holds a password, and everybody may read it: chmod o= {path}")

    def where(self, place: Place) -> str:
        """`FILE:LINE` of the key at *place*."""
        # only whole statements parse: the key's statement begins where the longest beginning without the key ends
        lines, after = self._text.splitlines(keepends=True), 0
        for end in range(1, len(lines) + 1):
            try:
                found: Any = tomllib.loads("".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                continue
            for name in place:
                found = found.get(name) if isinstance(found, dict) else None
            if found is not None:
                blank = sum(not line.strip() or line.lstrip().startswith("#") for line in lines[after : end - 1])
                return f"{self.path}:{after + blank + 1}"
            after = end
        return str(self.path)

    def refused(self, place: Place, why: str) -> ConfigError:
        """The error for the key at *place*."""
        return ConfigError(f"{self.where(place)}: {'.'.join(place)}: {why}")

    def instances(self, part: str) -> list[str]:
        """The names that have a table of their own in *part*."""
        table = self._tables.get(part)
        if part not in NAMED_PARTS or not isinstance(table, dict):
            return []
        return [name for name, value in table.items() if isinstance(value, dict)]

    def values(
        self, part: str, command: click.Command, *, instance: str | None, command_of: CommandOf
    ) -> dict[str, FromFile]:
        """What the file gives to *command*, by key. Raises ConfigError for the first entry that it may not hold.

        1. The top level. A key that *command* has no option for belongs to another part.
        2. The table of *part*, if it is a part.
        3. The table of this *instance* of it.
        """
        known = keys_of(command)
        found = {}
        for key, value in self._tables.items():  # 1
            if key in PARTS:
                if not isinstance(value, dict):
                    raise self.refused((key,), f"it is a part, and its values stand in a table: [{key}]")
            elif key in known:
                found[key] = self._given((key,), value, known[key])
            elif part in PARTS and not _is_known(key, command_of):
                raise self.refused(
                    (key,), f"no part has such an option{_nearest(key, [*_all_keys(command_of), *PARTS])}"
                )
        if part in PARTS:
            found |= self._of_table((part,), self._tables.get(part, {}), known)  # 2
            for name in self.instances(part):
                of_instance = self._of_table((part, name), self._tables[part][name], known)
                if name == instance:
                    found |= of_instance  # 3
        return found

    def _of_table(
        self, table: Place, values: Mapping[str, Any], known: Mapping[str, click.Option]
    ) -> dict[str, FromFile]:
        found = {}
        for key, value in values.items():
            if isinstance(value, dict) and len(table) == 1 and table[0] in NAMED_PARTS and key not in known:
                continue
            if key not in known:
                raise self.refused((*table, key), f"`warmlane {table[0]}` has no such option{_nearest(key, known)}")
            found[key] = self._given((*table, key), value, known[key])
        return found

    def _given(self, place: Place, value: Any, option: click.Option) -> FromFile:
        expected, fits = _expected(option)
        each = value if option.multiple and isinstance(value, list) else [value]
        if option.multiple != isinstance(value, list) or not all(fits(one) for one in each):
            raise self.refused(place, f"{expected} is expected, and not {value!r}")
        try:
            option.type_cast_value(click.Context(click.Command(place[0])), value)
        except click.BadParameter as error:
            raise self.refused(place, masked(error.message)) from error
        return FromFile(value, place)


def _expected(option: click.Option) -> tuple[str, Callable[[Any], bool]]:
    if option.is_flag:
        return "true or false", lambda value: isinstance(value, bool)
    if isinstance(option.type, click.types.IntParamType):
        return "a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)
    if isinstance(option.type, click.types.FloatParamType):
        return "a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if option.multiple:
        return 'a list of texts, as in ["one", "two"],', lambda value: isinstance(value, str)
    return f"a text in quotes ({option.type.name})", lambda value: isinstance(value, str)


def _nearest(key: str, known: Iterator[str] | Any) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; do you mean {near[0]}?" if near else "; `warmlane config show` has all"


def _keys_by_part(command_of: CommandOf) -> Iterator[frozenset[str]]:
    for part in PARTS:
        try:
            command = command_of(part)
        except click.ClickException:  # its packages are not installed here
            continue
        if command is not None:
            yield frozenset(keys_of(command))


def _is_known(key: str, command_of: CommandOf) -> bool:
    return any(key in keys for keys in _keys_by_part(command_of))


def _all_keys(command_of: CommandOf) -> set[str]:
    return set().union(*_keys_by_part(command_of))


class ConfigOption(click.Option):
    """`--config`: what the file gives becomes the defaults of the command's other options."""

    def __init__(self, part: str, command: click.Command, command_of: CommandOf) -> None:
        super().__init__(
            ["--config"],
            envvar=CONFIG_VARIABLE,
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            is_eager=True,
            expose_value=False,
            show_envvar=True,
            help="A file (TOML) of options by their names; an option or a variable takes precedence over it.",
        )
        self._part, self._command, self._command_of = part, command, command_of

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        path, rest = super().handle_parse_result(ctx, opts, args)
        # click has an object of its own for a value that is not given
        if isinstance(path, Path) and not ctx.resilient_parsing:
            file = ConfigFile(path)
            name = opts.get("name") or os.environ.get("WARMLANE_NAME")
            values = file.values(self._part, self._command, instance=name, command_of=self._command_of)
            decided = set(os.environ.get(DECIDED_VARIABLE, "").split())
            options = keys_of(self._command)
            use = {options[key].name: given for key, given in values.items() if key not in decided}
            ctx.default_map = {name: given.value for name, given in use.items()}
            ctx.meta[CONFIG_VARIABLE] = {name: file.where(given.place) for name, given in use.items()}
            if self._part in {"up", "supervisor"}:
                # the processes that it starts read the same file, except for the keys that it decides for them
                os.environ[CONFIG_VARIABLE] = str(path.absolute())
                os.environ[DECIDED_VARIABLE] = " ".join(sorted(decided | options.keys() | _NEVER_INHERITED))
        return path, rest


def configurable(part: str, command: click.Command, command_of: CommandOf) -> None:
    """Adds `--config` to *command*, or to the commands below it, if they have an option that a file can hold."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            configurable("", below, command_of)
    elif keys_of(command) and not any(isinstance(option, ConfigOption) for option in command.params):
        command.params.append(ConfigOption(part, command, command_of))
