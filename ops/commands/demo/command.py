"""`warmlane demo`: alternate the models one request at a time, keep every video, and judge what was seen."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from contracts.api.health import Readiness
from contracts.api.tasks import TaskView
from ops.commands.api.client import CommandClient
from ops.commands.api.options import Gateway, gateway_options
from ops.commands.demo.pictures import save_sheet
from ops.commands.demo.runs import OnALane, Run, bodies, run_one
from ops.commands.demo.story import print_story
from ops.commands.demo.tables import choices_of, figures, receipts_of, table_of
from ops.commands.demo.verdicts import REQUESTS_ASKED, judge_acceptance, judge_memory, judge_oom, judge_release
from ops.commands.saving import require_writable

INTERRUPTED: Final = 130
WARM_UP_S: Final = 60.0


def no_picture(error: ImportError) -> click.ClickException:
    """The error for a user who has no Pillow."""
    return click.ClickException(
        f"a model of this profile needs a picture, and {error.name} is not installed; "
        "pip install -e '.[demo]' in the checkout"
    )


def report(console: Console, runs: Sequence[Run], *, degraded: bool) -> None:
    """Prints the tables, the figures and the verdicts; for the degraded worker, those about the release."""
    console.print(table_of(runs))
    if degraded:
        console.print(receipts_of(runs))
        for line in choices_of(runs):
            console.print(f"started when it was  {line}", highlight=False)
    for line in figures(runs):
        console.print(line, highlight=False)
    judges = (judge_release, judge_memory) if degraded else (judge_oom, judge_acceptance, judge_memory)
    for verdict in (judge(runs) for judge in judges):
        colour = {True: "green", False: "red", None: "yellow"}[verdict.shown]
        console.print(f"[{colour}]{verdict.criterion}[/]  {verdict.text}", highlight=False)
    done = sum(run.is_done for run in runs)
    console.print(f"{done} of {len(runs)} done", highlight=False)


def are_there(readiness: Readiness, *, degraded: bool) -> bool:
    """Whether the workers that the requests are meant for are there: a warm lane for each model, or the degraded
    worker."""
    with_lanes = [model for model in readiness.models.values() if model.lanes]
    if degraded or not with_lanes:
        return readiness.degraded_worker
    return all(model.warm for model in with_lanes)


def wait_for_workers(console: Console, client: CommandClient, *, degraded: bool) -> None:
    """Waits a while for workers that are still starting. If they never start, the requests will show why."""
    deadline_s = time.monotonic() + WARM_UP_S
    with console.status("waiting for the degraded worker" if degraded else "waiting for the lanes to warm up"):
        while not are_there(client.health.readiness(), degraded=degraded) and time.monotonic() < deadline_s:
            time.sleep(0.2)


def _make(out: Path) -> None:
    """Makes the folder *out*, and checks that it can be written. Raises click.ClickException."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{out} cannot be made: {error.strerror}", param_hint="--out") from error
    require_writable(out)


@click.command(
    epilog="Examples:\n\n  warmlane demo\n\n  warmlane demo --requests 6 --out /tmp/six --url http://127.0.0.1:8080\n\n"
    "  warmlane demo --degraded   (beside `warmlane up --lanes anisora=0,phr00t=0`)\n\n"
    "  warmlane demo --fallback   (beside `warmlane up`, as its user)"
)
@click.option(
    "--requests",
    "count",
    type=click.IntRange(1, 10_000),
    default=REQUESTS_ASKED,
    show_default=True,
    help="How many requests, one after the other.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("warmlane-demo"),
    show_default=True,
    help="Folder of the videos and the contact sheet.",
)
@click.option(
    "--degraded",
    is_flag=True,
    help="Make the degraded worker swap for each request, and show what it proves each time.",
)
@click.option(
    "--fallback",
    is_flag=True,
    help="Instead: kill a lane with a request in hand, and report how its requests degrade and come back.",
)
@gateway_options
@click.pass_context
def command(ctx: click.Context, /, count: int, out: Path, degraded: bool, fallback: bool, gateway: Gateway) -> None:
    """Alternate the models, save every video, and judge the results.

    Exit status 1 when a request did not end as done; with --degraded, also when a release was not proven. With
    --fallback, exit status 1 when a request failed or the lane did not come back.
    """
    console = Console()
    if fallback:
        with gateway.client() as client:
            wait_for_workers(console, client, degraded=False)
            wait_for_workers(console, client, degraded=True)
            try:
                (body,) = bodies(client.settings().models[:1], 1)
                ctx.exit(0 if print_story(console, client, body) else 1)
            except KeyboardInterrupt:
                ctx.exit(INTERRUPTED)
            except ImportError as error:
                raise no_picture(error) from error
    runs: list[Run] = []
    interrupted = False
    _make(out)
    with gateway.client() as client:
        models = client.settings().models

        def look(task: TaskView) -> None:
            if degraded and task.route == "lane":
                raise OnALane(task.model, models)

        wait_for_workers(console, client, degraded=degraded)
        try:
            with console.status("") as status:
                for number, body in enumerate(bodies(models, count), start=1):
                    status.update(f"request {number} of {count}: {body['model']}")
                    runs.append(run_one(client, number, body, out, look))
        except KeyboardInterrupt:
            interrupted = True
        except ImportError as error:
            raise no_picture(error) from error
        except OSError as error:
            raise click.ClickException(f"cannot write to --out {out}: {error}") from error
    if runs:
        report(console, runs, degraded=degraded)
        save_sheet(console, runs, len(models), out)
    if interrupted:
        ctx.exit(INTERRUPTED)
    is_proven = not degraded or judge_release(runs).shown is not False
    ctx.exit(0 if is_proven and all(run.is_done for run in runs) else 1)
