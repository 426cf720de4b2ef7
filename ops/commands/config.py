"""`warmlane config`: the value of each option of each part, where it comes from, and whether it can be used."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from click.core import ParameterSource
from msgspec import Struct

from contracts.settings import SettingsError, load_settings
from ops.commands.artifact_options import require_links_possible
from ops.commands.config_file import (
    CONFIG_VARIABLE,
    NAMED_PARTS,
    PARTS,
    CommandOf,
    ConfigError,
    ConfigFile,
    FromFile,
    keys_of,
    masked,
)
from ops.commands.options import require_kept_long_enough
from ops.commands.variables import option_or_variable
from ops.lanes.quota import Quota, QuotaError
from ops.machine.placement import wanted_lanes
from ops.machine.tls import tls_of

_file_option: Final = option_or_variable(
    "--config",
    "path",
    envvar=CONFIG_VARIABLE,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The file (TOML). [default: none, and only variables and defaults count]",
)


class Value(Struct, frozen=True, kw_only=True):
    """An option's value, as text without passwords. *source* says what set it; *where* names the variable or line."""

    value: str | list[str] | None
    source: str
    where: str | None


class Judged(Struct, frozen=True):
    """One part, or one named lane or degraded worker: its values, and what is wrong with them."""

    title: str
    values: dict[str, Value]
    errors: list[str]


@click.group(epilog="Examples:\n\n  warmlane config check --config warmlane.toml\n\n  warmlane config show gateway")
def command() -> None:
    """Show and check the options of every part, from the command line, variables, one file, and defaults."""


@command.command(epilog="Examples:\n\n  warmlane config check\n\n  warmlane config check --config warmlane.toml")
@_file_option
@click.pass_context
def check(ctx: click.Context, path: Path | None) -> None:
    """Check every part's values without starting anything. Exit status 1 when a part could not use one."""
    file, judged = _of(ctx, path, PARTS, [])
    errors = list(dict.fromkeys(f"{each.title}: {error}" for each in judged for error in each.errors))
    for error in errors:
        click.echo(error, err=True)
    if errors:
        raise click.exceptions.Exit(1)
    click.echo(f"{'no file' if file is None else file.path}: usable by {', '.join(each.title for each in judged)}")


@command.command(
    epilog="Examples:\n\n  warmlane config show --config warmlane.toml\n\n  warmlane config show gateway --json\n\n"
    "  warmlane config show gateway -- --port 8080   (with an option, as it would count)"
)
@_file_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.argument("part", type=click.Choice(PARTS), required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def show(ctx: click.Context, path: Path | None, as_json: bool, part: str | None, options: tuple[str, ...]) -> None:
    """Show each value and its source: an option, a variable, a line of the file, or the default. Passwords are masked.

    Without PART, all parts are shown. What follows `--` is read as options of PART.
    """
    file, judged = _of(ctx, path, (part,) if part else PARTS, list(options))
    if as_json:
        parts = {each.title: each.values for each in judged}
        text = msgspec.json.encode({"file": None if file is None else str(file.path), "parts": parts})
        click.echo(msgspec.json.format(text, indent=2))
        return
    for each in judged:
        click.echo(each.title)
        for key, value in each.values.items():
            shown = (
                "-"
                if value.value is None
                else ", ".join([value.value] if isinstance(value.value, str) else value.value)
            )
            click.echo(f"  {key:<20} {shown:<32} {value.where or value.source}")


def _of(
    ctx: click.Context, path: Path | None, parts: tuple[str, ...], options: list[str]
) -> tuple[ConfigFile | None, list[Judged]]:
    root = ctx.find_root()
    group = root.command
    assert isinstance(group, click.Group)

    def command_of(name: str) -> click.Command | None:
        return group.get_command(root, name)

    file = None if path is None else ConfigFile(path.absolute())
    judged = []
    for part in parts:
        try:
            found = command_of(part)
        except click.ClickException:  # its packages are not installed here, so it does not run here
            continue
        assert found is not None
        names: list[str | None] = [*file.instances(part)] if file is not None else []
        for name in names or [None]:
            judged.append(_judged(part, name, found, file, command_of, options))
    return file, judged


def _judged(
    part: str,
    instance: str | None,
    command: click.Command,
    file: ConfigFile | None,
    command_of: CommandOf,
    arguments: list[str],
) -> Judged:
    title = part if instance is None else f"{part}.{instance}"
    if instance is not None:
        arguments = [*arguments, "--name", instance]
    ctx = click.Context(command, info_name=part)
    opts, _, _ = command.make_parser(ctx).parse_args([*arguments])
    given: dict[str, FromFile] = {}
    errors = []
    if file is not None:
        name = opts.get("name") or os.environ.get("WARMLANE_NAME")
        try:
            given = file.values(part, command, instance=name if part in NAMED_PARTS else None, command_of=command_of)
        except ConfigError as error:
            return Judged(title, {}, [error.message])
    known = keys_of(command)
    ctx.default_map = {known[key].name: each.value for key, each in given.items()}
    values: dict[str, Value] = {}
    converted: dict[str, Any] = {}
    for key, option in known.items():
        raw, source = option.consume_value(ctx, opts)
        is_set = isinstance(
            raw, str | int | float | Path | list | tuple
        )  # click has an object of its own for a value that is not set
        where = _where(option, source, file.where(given[key].place) if file is not None and key in given else None)
        value = Value(value=_text(raw), source=_SOURCES.get(source, "default"), where=where)
        values[key] = value
        if not is_set:
            converted[option.name or ""] = () if option.multiple else None
            if option.required and instance is not None:
                errors.append(f"{key} is missing: [{part}.{instance}] has to have it")
            continue
        try:
            converted[option.name or ""] = option.process_value(ctx, raw)
        except click.BadParameter as error:
            errors.append(f"{where or key}: {key}: {masked(error.message)}")
    if not errors:
        errors.extend(_together(converted))
    return Judged(title, values, errors)


_SOURCES: Final = {
    ParameterSource.COMMANDLINE: "option",
    ParameterSource.ENVIRONMENT: "variable",
    ParameterSource.DEFAULT_MAP: "file",
}


def _where(option: click.Option, source: ParameterSource, place: str | None) -> str | None:
    if source is ParameterSource.COMMANDLINE:
        return option.opts[0]
    if source is ParameterSource.ENVIRONMENT:
        return str(option.envvar)
    return place if source is ParameterSource.DEFAULT_MAP else None


def _text(raw: Any) -> str | list[str] | None:
    if isinstance(raw, list | tuple):
        return [masked(str(each)) for each in raw]
    if isinstance(raw, bool):
        return str(raw).lower()
    return masked(str(raw)) if isinstance(raw, str | int | float | Path) else None


def _together(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with values that are usable alone, but not together."""
    try:
        catalog = load_settings(values.get("settings")).catalog(values["profile"]) if "profile" in values else None
    except SettingsError as error:
        yield str(error)
        return
    judgements: list[Callable[[], object]] = []
    if catalog is not None:
        if "keep_s" in values:
            judgements.append(lambda: require_kept_long_enough(values["keep_s"], catalog.windows))
        if "lanes" in values:
            judgements.append(lambda: wanted_lanes(values["lanes"], catalog))
        if values.get("quota") is not None:
            judgements.append(lambda: Quota(values["quota"], catalog.models))
        if values.get("model") is not None and catalog.resolve(values["model"]) is None:
            yield f"no model is called {values['model']}; there are {', '.join(sorted(catalog.models))}"
    if "tls_cert" in values:
        judgements.append(lambda: tls_of(values["tls_cert"], values["tls_key"]))
    if "links_last_s" in values:
        judgements.append(lambda: require_links_possible(values["links_last_s"], values["artifacts"]))
    for judge in judgements:
        try:
            judge()
        except click.ClickException as error:
            yield error.format_message()
        except QuotaError as error:
            yield str(error)
