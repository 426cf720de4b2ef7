"""`warmlane …`: names the commands, and loads each only when it is called.

Exit status: 0 as asked, 1 refused or failed, 2 a command line that cannot be used, 130 Ctrl-C.
"""

import contextlib
import errno
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Final

import click
from msgspec import Struct

from ops.commands.config_file import PARTS, configurable
from ops.commands.spelling import guarded, show_everything
from ops.telemetry.line_writer import hold_standard_descriptors

ROOMS: Final = ("contracts", "degraded_worker", "gateway", "lane_worker", "ops")
INTERRUPTED: Final = 130
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class CommandEntry(Struct, frozen=True):
    """Where a command is (`module:attribute`), and the line that `warmlane --help` shows without importing it."""

    place: str
    text: str


COMMANDS: Final[dict[str, CommandEntry]] = {
    "up": CommandEntry("ops.commands.up.command:command", "Run the whole system on this machine."),
    "submit": CommandEntry("ops.commands.submit:command", "Generate one video and save it."),
    "tasks": CommandEntry("ops.commands.tasks:command", "List, show, cancel, download and forget tasks."),
    "resubmit": CommandEntry("ops.commands.resubmit:command", "Submit the request of a failed task again."),
    "demo": CommandEntry(
        "ops.commands.demo.command:command", "Alternate the models, save every video, judge the result."
    ),
    "doctor": CommandEntry(
        "ops.commands.doctor.command:command", "Report what this machine has, what it lacks, and what to do."
    ),
    "nats-server": CommandEntry("ops.commands.nats_server:command", "Run the nats-server of `warmlane up` by itself."),
    "provision": CommandEntry(
        "ops.commands.provision:command", "Create or update streams, consumers and buckets in NATS."
    ),
    "backup": CommandEntry("ops.commands.backup.command:backup_command", "Save every stream and bucket into a folder."),
    "restore": CommandEntry("ops.commands.backup.command:restore_command", "Bring back what `warmlane backup` saved."),
    "gateway": CommandEntry("gateway.command:command", "Serve the HTTP API."),
    "supervisor": CommandEntry("ops.commands.supervisor:command", "Keep the wanted lanes running on this machine."),
    "lane": CommandEntry("lane_worker.command:command", "Run one warm lane."),
    "degraded": CommandEntry(
        "degraded_worker.command:command", "Run a degraded worker: every model on one slot, in turn."
    ),
    "fork-server": CommandEntry(
        "lane_worker.forking.command:command", "Import torch once for all the workers of this machine."
    ),
    "models": CommandEntry(
        "lane_worker.checkpoints.command:command", "Prepare published checkpoints; verify and list them."
    ),
    "config": CommandEntry("ops.commands.config:command", "Check and show what options, variables and a file set."),
    "status": CommandEntry("ops.commands.status:command", "Show lanes, queues, fallbacks, and where requests go."),
    "trace": CommandEntry("ops.commands.trace:command", "Print the trace of a task as a tree, from Jaeger."),
    "capacity": CommandEntry(
        "ops.commands.capacity.command:command", "Estimate what dedicated lanes carry, and what they cost."
    ),
    "replay": CommandEntry(
        "gateway.replay.command:command", "Replay a recorded day under another policy, in a simulation."
    ),
    "lane-mode": CommandEntry(
        "ops.commands.lane_mode:command", "Keep new requests off a model's lanes, or let routing decide."
    ),
    "keys": CommandEntry("ops.commands.keys:command", "Make, list and revoke API keys."),
    "webhooks": CommandEntry("ops.commands.webhooks:command", "Get notified of tasks: register, test, deliver again."),
    "slots": CommandEntry("ops.commands.slots:command", "Show what is resident on which slot; lift a quarantine."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name: `--help` stays fast, and the gateway's install has no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].place.partition(":")
        try:
            with _no_collection():
                command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in ROOMS:
                raise  # a broken installation of Warmlane itself; the traceback says more
            raise click.ClickException(
                f"`warmlane {cmd_name}` needs the package {error.name}, which is not installed; "
                "pip install -c constraints.txt -e clients/python -e '.[worker,server]' in the checkout brings all"
            ) from error
        assert isinstance(command, click.Command)
        command.name = cmd_name
        if cmd_name != "config":  # `config` judges files itself
            configurable(cmd_name if cmd_name in PARTS else "", command, lambda name: self.get_command(ctx, name))
        return guarded(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # from the table: asking each command for its help would import them all
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.text) for name, entry in COMMANDS.items()])


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Turns garbage collection off for the block: nearly all that the block makes stays."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def version() -> str:
    """The installed version; a checkout that was never installed has none."""
    try:
        return metadata.version("warmlane")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"warmlane {version()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples:\n\n  warmlane up\n\n  warmlane submit anisora 'a red fox in fresh snow'\n\n  warmlane demo\n\n"
    "`warmlane COMMAND --help` explains each command and the variables that stand for options, such as WARMLANE_PORT.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Heavy video models on warm lanes, over NATS JetStream."""


def _say(show: Callable[[], object]) -> None:
    # if even that cannot be written, the exit status still shows the failure
    with contextlib.suppress(OSError):
        show()


def main() -> None:
    """The console script. It ends the process with one of the exit statuses above."""
    hold_standard_descriptors()
    show_everything()
    try:
        status = cli.main(prog_name="warmlane", standalone_mode=False)
    except click.ClickException as error:
        _say(error.show)
        status = error.exit_code
    except click.Abort:
        _say(lambda: click.echo("interrupted", err=True))
        status = INTERRUPTED
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # most likely the command could not print; its work may be done
        text = f"{error}; make room, or send the output elsewhere"
        _say(click.ClickException(text).show)
        status = 1
    # The kernel takes back all memory at once. Searching it for garbage first takes as long as half of the imports.
    gc.freeze()
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
