"""`warmlane demo`: alternate the models one request at a time, keep every video, and judge what was seen.

The verdicts and the figures are pure functions of the runs.
"""

import base64
import io
import itertools
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.api.health import Readiness
from contracts.api.settings import ModelView
from contracts.api.tasks import TaskView
from contracts.tasks import SwapReceipt
from ops.commands.api.client import Client
from ops.commands.api.options import Gateway, gateway_options
from ops.commands.api.problems import Refused
from ops.commands.demo.story import tell
from ops.commands.saving import require_writable

INTERRUPTED: Final = 130
WARM_UP_S: Final = 60.0
# SC-001 asks for at least so many requests, SC-005 for this share of switches accepted within this time.
REQUESTS_ASKED: Final = 20
ACCEPT_WITHIN_S: Final = 3.0
ACCEPT_SHARE: Final = 0.95
PROMPTS: Final = (
    "a red fox in fresh snow",
    "a paper boat on a quiet lake",
    "a lantern in the rain",
    "cherry petals over a stone bridge",
    "a lighthouse in a winter storm",
    "a train through a field of rape",
    "a cat asleep on a warm roof",
    "steam above a bowl of noodles",
    "a kite over a grey beach",
    "fireflies between old cedars",
)
FRAMES_SHOWN: Final = 4
FRAME_WIDTH: Final = 144
CAPTION_HEIGHT: Final = 22
GAP: Final = 8


class Run(Struct, frozen=True, kw_only=True):
    """One request of the demo. Without a *task* it was refused, and *refusal* is the code."""

    number: int
    model: str
    accept_s: float
    task: TaskView | None = None
    refusal: str | None = None
    video: Path | None = None

    @property
    def is_done(self) -> bool:
        return self.task is not None and self.task.status == "done"

    @property
    def outcome(self) -> str:
        """`done`, `failed: CODE` or `refused: CODE`."""
        if self.task is None:
            return f"refused: {self.refusal}"
        return f"failed: {self.task.error.code}" if self.task.error else self.task.status


class CriterionVerdict(Struct, frozen=True):
    """What the runs say about one success criterion; *shown* is None where they cannot tell."""

    criterion: str
    text: str
    shown: bool | None


def judge_oom(runs: Sequence[Run]) -> CriterionVerdict:
    """SC-001: of at least 20 alternating requests on dedicated lanes, none fails with CUDA out of memory."""
    tasks = [run.task for run in runs if run.task is not None]
    with_cuda = [task for task in tasks if task.memory is not None and task.memory.cuda_allocated_bytes is not None]
    if not with_cuda:
        return CriterionVerdict("SC-001", "not shown: no CUDA", None)
    out_of_memory = [task for task in tasks if task.error is not None and task.error.code == "out_of_memory"]
    counted = f"{len(out_of_memory)} of {len(tasks)} failed with CUDA OOM"
    if out_of_memory:
        return CriterionVerdict("SC-001", counted, False)
    if len(tasks) < REQUESTS_ASKED:
        return CriterionVerdict("SC-001", f"not shown: {counted}, but it takes {REQUESTS_ASKED} requests", None)
    elsewhere = sum(task.route != "lane" for task in tasks)
    if elsewhere:
        return CriterionVerdict(
            "SC-001", f"not shown: {counted}, but {elsewhere} ran outside the dedicated lanes", None
        )
    if len({task.model for task in tasks}) < 2:
        return CriterionVerdict("SC-001", f"not shown: {counted}, but all were for one model", None)
    return CriterionVerdict("SC-001", counted, True)


def judge_acceptance(runs: Sequence[Run]) -> CriterionVerdict:
    """SC-005: with warm lanes, at least 95 % of the requests that switch the model are accepted within 3 s."""
    switches = [run for _, run in model_switches(runs)]
    if not switches:
        return CriterionVerdict("SC-005", "not shown: no request switched the model", None)
    elsewhere = sum(run.task is not None and run.task.route != "lane" for run in runs)
    if elsewhere:
        return CriterionVerdict("SC-005", f"not shown: {elsewhere} of {len(runs)} found no warm lane", None)
    soon = sum(run.task is not None and run.accept_s <= ACCEPT_WITHIN_S for run in switches)
    share = soon / len(switches)
    text = f"{soon} of {len(switches)} model switches accepted within {ACCEPT_WITHIN_S:g} s ({share:.1%})"
    return CriterionVerdict("SC-005", text, share >= ACCEPT_SHARE)


def model_switches(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Every run that asks for another model than the one before it, after that one."""
    return [(before, run) for before, run in itertools.pairwise(runs) if run.model != before.model]


def judge_release(runs: Sequence[Run]) -> CriterionVerdict:
    """FR-002: on the degraded worker, every switch carries the proof that the model before was gone first."""
    switches = model_switches(runs)
    if not switches:
        return CriterionVerdict("FR-002", "not shown: no request switched the model", None)
    doubts = [(run.number, doubt_of_release(before, run)) for before, run in switches]
    first = next(((number, doubt) for number, doubt in doubts if doubt is not None), None)
    proven = sum(doubt is None for _, doubt in doubts)
    text = f"{proven} of {len(switches)} model switches proved the release before the load"
    return CriterionVerdict(
        "FR-002", text if first is None else f"{text}; request {first[0]}: {first[1]}", first is None
    )


def doubt_of_release(before: Run, run: Run) -> str | None:
    """What is missing in the proof that *run* carries of its release; None when nothing is.

    1. There is a receipt, and it is for the model of the run.
    2. `nothing_resident` is no release where the run before left its pipeline with the same worker.
    3. `unloaded` with a component still alive is no release.
    4. Without a probe only a kill is a release.
    5. With a probe: at least two samples, no more in use than its proof allows, and room for the next pipeline.
    """
    swap = run.task.swap if run.task is not None else None
    if run.task is None or swap is None or swap.loaded_model != run.model:  # 1
        return "no receipt"
    if swap.how == "nothing_resident":  # 2
        is_same_worker = before.task is not None and before.task.worker == run.task.worker
        return f"{before.model} was resident and was not released" if before.is_done and is_same_worker else None
    if swap.how != "killed" and swap.alive:  # 3
        return f"{', '.join(swap.alive)} stayed alive"
    if swap.probe == "none":  # 4
        return None if swap.how == "killed" else "nothing was measured, and the host was not killed"
    if swap.samples < 2 or swap.excess_bytes is None or swap.free_bytes is None:  # 5
        return "figures are missing"
    if swap.excess_bytes > 0:
        return f"{swap.excess_bytes:,} bytes too many in use"
    if swap.free_bytes < swap.needed_bytes:
        return f"{swap.needed_bytes - swap.free_bytes:,} bytes too few free"
    return None


def judge_memory(runs: Sequence[Run]) -> CriterionVerdict:
    """SC-003, as far as a client can see it: every task that ended carries the memory reading after its cleanup."""
    tasks = [run.task for run in runs if run.task is not None]
    if not tasks:
        return CriterionVerdict("SC-003", "not shown: no request was accepted", None)
    with_reading = sum(task.memory is not None for task in tasks)
    return CriterionVerdict(
        "SC-003", f"{with_reading} of {len(tasks)} tasks carry a memory reading", with_reading == len(tasks)
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of *values* that at least *percent* of them do not exceed (nearest rank). There must be one."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def figures(runs: Sequence[Run]) -> list[str]:
    """Accept p50 and p99 as the client saw them, and the median from publish to inference start, where known."""
    lines = []
    accepted_ms = [run.accept_s * 1000 for run in runs if run.task is not None]
    if accepted_ms:
        p50, p99 = percentile(accepted_ms, 50), percentile(accepted_ms, 99)
        lines.append(f"accept, idle: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(accepted_ms)} requests)")
    started_ms = []
    for run in runs:
        started = run.task.at("inference_started") if run.task is not None else None
        if run.task is not None and started is not None:
            started_ms.append((started - run.task.queued_at).total_seconds() * 1000)
    if started_ms:
        lines.append(f"publish to inference start: p50 {percentile(started_ms, 50):.1f} ms ({len(started_ms)} tasks)")
    swaps = [run.task.swap for run in runs if run.task is not None and run.task.swap is not None]
    if swaps:
        total_s = percentile([swap.release_s + swap.verify_s + swap.load_s for swap in swaps], 50)
        lines.append(f"release, verify and load: p50 {total_s:.2f} s ({len(swaps)} swaps)")
    return lines


def table_of(runs: Sequence[Run]) -> Table:
    """One line for each run."""
    table = Table()
    table.add_column("#", justify="right")
    table.add_column("model")
    table.add_column("worker")
    for heading in ("accept ms", "wait ms", "total s"):
        table.add_column(heading, justify="right")
    table.add_column("outcome", overflow="fold")
    for run in runs:
        task = run.task
        table.add_row(
            str(run.number),
            run.model,
            (task.worker or task.route) if task else "",
            f"{run.accept_s * 1000:.1f}",
            _between(task.queued_at, task.claimed_at, 1000, ".1f") if task else "",
            _between(task.created_at, task.finished_at, 1, ".2f") if task else "",
            run.outcome,
        )
    return table


def receipts_of(runs: Sequence[Run]) -> Table:
    """The swap receipt of each run that has one, narrow enough for a terminal of 80 columns."""
    table = Table(title="What was proven before each load (memory in MB)", box=None, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("from → to")
    table.add_column("how", overflow="fold")
    # what tiny pipelines weigh does not show in the memory: for them this is the proof
    table.add_column("alive", overflow="fold")
    for heading in ("before", "after", "limit", "n"):
        table.add_column(heading, justify="right")
    table.add_column("seconds*", justify="right")
    for run in runs:
        swap = run.task.swap if run.task else None
        if swap is not None:
            table.add_row(
                str(run.number),
                f"{swap.released_model or 'nothing'} → {swap.loaded_model}",
                _how(swap),
                ", ".join(swap.alive) or "none",
                _megabytes(swap.before_bytes),
                _megabytes(swap.after_bytes),
                _megabytes(swap.allowed_bytes),
                str(swap.samples),
                " ".join(f"{value_s:.2f}" for value_s in (swap.release_s, swap.verify_s, swap.load_s)),
            )
    table.caption = "n samples; * release, proof, load"
    return table


def _how(swap: SwapReceipt) -> str:
    how = swap.how.replace("_", " ")
    return f"{how}: {swap.reason}" if swap.reason else how


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f}"


def _between(start: datetime, end: datetime | None, unit: float, form: str) -> str:
    return "" if end is None else format((end - start).total_seconds() * unit, form)


class OnALane(click.ClickException):
    """A lane got what was meant for the degraded worker."""

    def __init__(self, model: str, models: Sequence[ModelView]) -> None:
        none = ",".join(f"{other.name}=0" for other in models)
        switches = "\n".join(f"  warmlane lane-mode {other.name} degraded" for other in models)
        super().__init__(
            f"the request for {model} went to a warm lane. Start a system without lanes:\n"
            f"  warmlane up --lanes {none}\n"
            f"or keep this one and send the models to the degraded worker (`auto` undoes it):\n{switches}"
        )


def run_one(
    client: Client,
    number: int,
    body: Mapping[str, Any],
    out: Path,
    on_change: Callable[[TaskView], None] = lambda _: None,
) -> Run:
    """Submits *body*, waits for its end and saves its video in *out*; *on_change* sees every state of the task.

    Ctrl-C, or OnALane out of *on_change*, cancels the task and goes on upwards.
    """
    model = str(body["model"])
    begun_s = time.monotonic()
    try:
        task, revision = client.submit(body, idempotency_key=str(uuid.uuid4()))
    except Refused as error:
        return Run(number=number, model=model, accept_s=time.monotonic() - begun_s, refusal=error.problem.code)
    accept_s = time.monotonic() - begun_s
    try:
        task = client.follow(task, revision, on_change)
    except (KeyboardInterrupt, OnALane):
        client.cancel(task.id)
        raise
    video = None
    if task.video is not None:
        video = out / f"{number:02}-{model}.mp4"
        client.download(task, video)
    return Run(number=number, model=model, accept_s=accept_s, task=task, video=video)


def bodies(models: Sequence[ModelView], count: int) -> Iterator[dict[str, Any]]:
    """*count* requests that take the models in turn. Raises ImportError where a picture is needed and Pillow absent."""
    for index in range(count):
        model = models[index % len(models)]
        body = {"model": model.name, "prompt": PROMPTS[index // len(models) % len(PROMPTS)]}
        if model.constraints.image.presence == "required":
            body["image"] = gradient_uri()
        yield body


def no_picture(error: ImportError) -> click.ClickException:
    """What a user is told who has no Pillow."""
    return click.ClickException(
        f"a model of this profile needs a picture, and {error.name} is not installed; "
        "pip install -e '.[demo]' in the checkout"
    )


def gradient_uri() -> str:
    """A small picture, for models that demand one. Raises ImportError without Pillow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(runs: Sequence[Run], columns: int, path: Path) -> None:
    """A picture of every run that has a video: a few of its frames and a caption, *columns* runs in a row.

    Every frame of every video is decoded. Raises ImportError without PyAV or Pillow.
    """
    import av
    from PIL import Image, ImageDraw, ImageFont

    def strip(run: Run, video: Path) -> list[Image.Image]:
        assert run.task is not None
        assert run.task.video is not None
        last = run.task.video.frames - 1
        wanted = {round(last * index / (FRAMES_SHOWN - 1)) for index in range(FRAMES_SHOWN)}
        with av.open(str(video)) as container:
            pictures = [frame.to_image() for index, frame in enumerate(container.decode(video=0)) if index in wanted]
        return [picture.resize((FRAME_WIDTH, picture.height * FRAME_WIDTH // picture.width)) for picture in pictures]

    tiles = [(run, strip(run, run.video)) for run in runs if run.video is not None]
    frame_height = max(picture.height for _, pictures in tiles for picture in pictures)
    tile_width, tile_height = FRAMES_SHOWN * FRAME_WIDTH + GAP, frame_height + CAPTION_HEIGHT + GAP
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * tile_width + GAP, rows * tile_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (run, pictures) in enumerate(tiles):
        left, top = GAP + index % columns * tile_width, GAP + index // columns * tile_height
        for position, picture in enumerate(pictures):
            sheet.paste(picture, (left + position * FRAME_WIDTH, top))
        seed = run.task.parameters.seed if run.task else ""
        draw.text((left, top + frame_height + 3), f"{run.number}  {run.model}  seed {seed}", fill="black", font=font)
    sheet.save(path)


def report(console: Console, runs: Sequence[Run], *, degraded: bool) -> None:
    """Prints the tables, the figures and the verdicts: on the degraded worker those about the release."""
    console.print(table_of(runs))
    if degraded:
        console.print(receipts_of(runs))
    for line in figures(runs):
        console.print(line, highlight=False)
    judges = (judge_release, judge_memory) if degraded else (judge_oom, judge_acceptance, judge_memory)
    for verdict in (judge(runs) for judge in judges):
        colour = {True: "green", False: "red", None: "yellow"}[verdict.shown]
        console.print(f"[{colour}]{verdict.criterion}[/]  {verdict.text}", highlight=False)
    done = sum(run.is_done for run in runs)
    console.print(f"{done} of {len(runs)} done", highlight=False)


def save_sheet(console: Console, runs: Sequence[Run], columns: int, out: Path) -> None:
    """Makes the contact sheet, or says what it needs."""
    if not any(run.video for run in runs):
        return
    sheet = out / "contact-sheet.png"
    try:
        contact_sheet(runs, columns, sheet)
    except ImportError as error:
        console.print(
            f"no contact sheet: {error.name} is not installed; pip install -e '.[demo]' in the checkout",
            highlight=False,
        )
        return
    console.print(f"videos and {sheet.name} are in {out}", highlight=False)


def are_there(readiness: Readiness, *, degraded: bool) -> bool:
    """Whether the workers are there that the requests are meant for: a warm lane each, or the degraded worker."""
    with_lanes = [model for model in readiness.models.values() if model.lanes]
    if degraded or not with_lanes:
        return readiness.degraded_worker
    return all(model.warm for model in with_lanes)


def wait_for_workers(console: Console, client: Client, *, degraded: bool) -> None:
    """Waits a while for workers that still start. If they do not, the requests will tell why."""
    deadline_s = time.monotonic() + WARM_UP_S
    with console.status("waiting for the degraded worker" if degraded else "waiting for the lanes to warm up"):
        while not are_there(client.health.readiness(), degraded=degraded) and time.monotonic() < deadline_s:
            time.sleep(0.2)


def _make(out: Path) -> None:
    """The folder *out*, in which something can be written. Raises click.ClickException."""
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
    help="Instead: kill a lane with a request in hand, and tell how its requests degrade and come back.",
)
@gateway_options
@click.pass_context
def command(ctx: click.Context, /, count: int, out: Path, degraded: bool, fallback: bool, gateway: Gateway) -> None:
    """Alternate the models, save every video, and judge what was seen.

    Exit status 1 when not every request ended as done or, with --degraded, when a release was not proven; with
    --fallback, when a request failed or the lane did not come back.
    """
    console = Console()
    if fallback:
        with gateway.client() as client:
            wait_for_workers(console, client, degraded=False)
            wait_for_workers(console, client, degraded=True)
            try:
                (body,) = bodies(client.settings().models[:1], 1)
                ctx.exit(0 if tell(console, client, body) else 1)
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
