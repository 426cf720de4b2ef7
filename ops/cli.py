"""`warmlane …`: names the commands, and loads each only when it is called."""

import importlib
import sys
from typing import Final

import click

# name → where its click command is, and the line that `warmlane --help` shows without importing it
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("ops.stack:command", "Run the whole system on this machine."),
    "submit": ("ops.submit:command", "Submit a generation and save its video."),
    "demo": ("ops.demo:command", "Alternate the models and judge the result."),
    "doctor": ("ops.doctor:command", "Say what this machine has and what is missing."),
    "provision": ("ops.provision:command", "Make the nats-server hold streams, consumers and buckets."),
    "gateway": ("gateway.command:command", "Serve the HTTP API."),
    "lane": ("lane_worker.command:command", "Run one warm lane."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"`warmlane {cmd_name}` needs the package {error.name}, which is not installed; "
                "install warmlane with its extras: pip install 'warmlane[worker,server]'"
            ) from error
        assert isinstance(command, click.Command)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # from the table: asking each command for its help would import them all
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples:\n\n  warmlane up\n\n  warmlane submit anisora 'a red fox in fresh snow'\n\n  warmlane demo",
)
@click.version_option(package_name="warmlane", prog_name="warmlane")
def main() -> None:
    """Warm lanes for heavy video models, over NATS JetStream."""


if __name__ == "__main__":
    sys.exit(main())
