"""`make regression`: 200 valid requests to a whole system, and the answers beside the last result (SC-004).

Requests for AniSora and Phr00t take turns, each with other parameters, at a pace that the lanes can serve: a refusal
means that something became worse. Everything is counted as a client sees it. A request without an answer counts as a
5xx.
"""

import asyncio
import base64
import io
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import click
import httpx
import msgspec
from msgspec import Struct
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from contracts.fields import IntegerField
from contracts.settings import Catalog, ModelEntry, load_settings
from tests.bench.arrivals import CLIENT_TIMEOUT_S
from tests.bench.machine import machine, system
from tests.drills.failover_moves import Figure
from tests.kit.system import UpProcess

REQUESTS: Final = 200
ACCEPTED_PERCENT: Final = 99.0
# By how many percentage points the share of 5xx answers may exceed the baseline's.
POINTS: Final = 1.0
# Requests a second: each lane gets half of them, and takes 0.1 to 0.4 s for one on 2 cores.
RATE: Final = 2.0
# Generations stay small, well within the settings' ranges: the drill judges whether they are accepted.
SIDE_MAX: Final = 96
FRAMES_MAX: Final = 17
POLL_S: Final = 20
# A task that has not ended this long after the last request is reported with its status.
END_S: Final = 120.0
AGAIN_S: Final = 0.5
BASELINE: Final = Path("docs/benchmarks/regression.json")
NO_ANSWER: Final = 0
PROMPTS: Final = (
    "a red fox in fresh snow",
    "雨の中の灯籠",
    "a paper boat, seen from above; 50 mm",
    "un cerf-volant\nau vent",
)

Kind = Literal["submit", "other"]


class Seen(Struct, frozen=True, kw_only=True):
    """All that was observed: how often each kind of request got each status (0: there was no answer), and what became
    of the accepted tasks."""

    answers: Mapping[tuple[Kind, int], int]
    ends: Mapping[str, int]
    seconds: float

    def count(self, kind: Kind, *, above: int = -1, below: int = 1_000) -> int:
        """How many answers to requests of *kind* have a status between *above* and *below*."""
        return sum(number for (each, status), number in self.answers.items() if each == kind and above < status < below)

    def percent_5xx(self, kind: Kind) -> float:
        """The percentage of requests of *kind* that got a 5xx or no answer at all. 0 where there was no request."""
        every = self.count(kind)
        failed = self.count(kind, above=499) + self.answers.get((kind, NO_ANSWER), 0)
        return 100 * failed / every if every else 0.0

    @property
    def percent_accepted(self) -> float:
        every = self.count("submit")
        return 100 * self.answers.get(("submit", httpx.codes.ACCEPTED), 0) / every if every else 0.0


class Result(Struct, frozen=True, kw_only=True):
    """A run, as it is kept for comparison with later ones."""

    when: str
    version: str
    machine: str
    system: str
    requests: int
    rate_per_s: float
    accepted_percent: float
    submit_5xx_percent: float
    other_requests: int
    other_5xx_percent: float
    ends: dict[str, int]


def result_of(seen: Seen, *, rate: float) -> Result:
    """*seen*, with time and machine."""
    return Result(
        when=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=metadata.version("warmlane"),
        machine=machine(),
        system=system(),
        requests=seen.count("submit"),
        rate_per_s=rate,
        accepted_percent=round(seen.percent_accepted, 3),
        submit_5xx_percent=round(seen.percent_5xx("submit"), 3),
        other_requests=seen.count("other"),
        other_5xx_percent=round(seen.percent_5xx("other"), 3),
        ends=dict(seen.ends),
    )


def judge(seen: Seen, baseline: Result | None) -> list[Figure]:
    """The figures of the run for SC-004; without a *baseline* there is nothing to compare its 5xx with. Pure."""
    figures = [
        Figure(
            what="valid requests sent", measured=seen.count("submit"), asked=REQUESTS, unit="requests", at_least=True
        ),
        Figure(what="accepted", measured=seen.percent_accepted, asked=ACCEPTED_PERCENT, unit="points", at_least=True),
    ]
    if baseline is not None:
        before: tuple[tuple[Kind, str, float], ...] = (
            ("submit", "of the submits answered with 5xx", baseline.submit_5xx_percent),
            ("other", "of all other requests answered with 5xx", baseline.other_5xx_percent),
        )
        figures += [
            Figure(
                what=what,
                measured=seen.percent_5xx(kind),
                asked=percent + POINTS,
                unit="points",
                note=f"{percent:g} % on {baseline.when}",
            )
            for kind, what, percent in before
        ]
    return figures


def bodies(catalog: Catalog, count: int) -> Iterator[dict[str, Any]]:
    """*count* valid requests, models in turn, the same in every run."""
    dice = random.Random(4)
    picture = png(dice)
    for number, entry in zip(range(count), itertools.cycle(catalog.models.values()), strict=False):
        limits = entry.constraints
        name = dice.choice((entry.name, *entry.aliases))
        body: dict[str, Any] = {"model": name, "prompt": f"{dice.choice(PROMPTS)} {number}"}
        choices = {
            "negative_prompt": "blurred",
            "width": pick(dice, limits.width, SIDE_MAX),
            "height": pick(dice, limits.height, SIDE_MAX),
            "num_frames": pick(dice, limits.num_frames, FRAMES_MAX),
            "fps": pick(dice, limits.fps, 30),
            "seed": pick(dice, limits.seed, limits.seed.maximum or 0),
            "steps": limits.steps.value_when_absent,
            "cfg": cfg(dice, entry),
        }
        always = ("width", "height", "num_frames")
        body |= {field: value for field, value in choices.items() if field in always or dice.random() < 0.5}
        if limits.image.presence == "required" or (limits.image.presence == "optional" and dice.random() < 0.5):
            body["image"] = picture
        yield body


def pick(dice: random.Random, field: IntegerField, most: int) -> int:
    """A value that *field* allows, up to *most*."""
    if field.fixed is not None:
        return field.fixed
    step, least = field.step or 1, field.minimum or 0
    first = least + (field.offset - least) % step
    return dice.randrange(first, max(first, min(most, field.maximum or most)) + 1, step)


def cfg(dice: random.Random, entry: ModelEntry) -> float:
    """A cfg that the model allows."""
    field = entry.constraints.cfg
    if field.fixed is not None:
        return field.fixed
    return round(dice.uniform(field.minimum or 1.0, field.maximum or 1.0), 2)


def png(dice: random.Random) -> str:
    """A small picture, as a data URI."""
    file = io.BytesIO()
    Image.frombytes("RGB", (40, 30), dice.randbytes(40 * 30 * 3)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class Caller:
    """Sends requests as a client does, and counts what comes back."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.answers: Counter[tuple[Kind, int]] = Counter()
        self.ends: Counter[str] = Counter()

    async def one(self, body: Mapping[str, Any]) -> None:
        """Follows one request from its submit to its video."""
        answer = await self._ask("submit", "POST", "/generate", body)
        if answer is None or answer.status_code != httpx.codes.ACCEPTED:
            return
        end = "never seen to end"
        try:
            async with asyncio.timeout(END_S):
                end = await self._end_of(answer.json()["id"])
        except TimeoutError:
            pass
        self.ends[end] += 1

    async def _end_of(self, task_id: str) -> str:
        while True:
            answer = await self._ask("other", "GET", f"/tasks/{task_id}?wait={POLL_S}")
            if answer is None or answer.is_server_error:
                await asyncio.sleep(AGAIN_S)
                continue
            if not answer.is_success:
                return f"status {answer.status_code} of an accepted task"
            task = answer.json()
            if task["status"] == "failed":
                return f"failed: {task['error']['code']}"
            if task["status"] == "done":
                video = await self._ask("other", "GET", f"/tasks/{task_id}/video")
                return "done" if video is not None and video.is_success else "done, and its video was not had"

    async def _ask(
        self, kind: Kind, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response | None:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.TransportError:
            self.answers[kind, NO_ANSWER] += 1
            return None
        self.answers[kind, answer.status_code] += 1
        return answer


async def send(url: str, *, count: int, rate: float, console: Console) -> Seen:
    """Sends *count* requests, *rate* a second, and follows each to its end. It does not wait for earlier answers."""
    begun_s = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=CLIENT_TIMEOUT_S, limits=limits) as http:
        caller = Caller(http)
        async with asyncio.TaskGroup() as group:
            with Progress(console=console, transient=True) as progress:
                bar = progress.add_task("sending", total=count)
                for number, body in enumerate(bodies(load_settings().catalog("tiny"), count)):
                    await asyncio.sleep(begun_s + number / rate - time.monotonic())
                    group.create_task(caller.one(body))
                    progress.advance(bar)
    return Seen(answers=caller.answers, ends=caller.ends, seconds=time.monotonic() - begun_s)


def read_baseline(path: Path) -> Result | None:
    """The result in *path*; None where there is none. Raises click.ClickException."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise click.ClickException(
            f"the baseline {path} cannot be read ({error}); restore it, or remove it and the next run sets it anew"
        ) from error


def report(console: Console, seen: Seen, figures: Sequence[Figure]) -> None:
    """Prints the answers, what became of the tasks, and the verdicts."""
    table = Table("SC-004", "measured", "asked", "", "", title="Regression")
    for figure in figures:
        sign, colour = "≥" if figure.at_least else "≤", "green" if figure.is_met else "red"
        unit = " %" if figure.unit == "points" else ""
        table.add_row(
            figure.what,
            f"{figure.measured:g}{unit}",
            f"{sign} {figure.asked:g}{unit}",
            f"[{colour}]{figure.verdict}[/]",
            figure.note,
        )
    console.print(table)
    kinds: tuple[tuple[Kind, str], ...] = (("submit", "submits"), ("other", "polls and videos"))
    for kind, name in kinds:
        of_kind = sorted((status, number) for (each, status), number in seen.answers.items() if each == kind)
        counts = ", ".join(f"{number} x {status or 'no answer'}" for status, number in of_kind)
        console.print(f"{name}: {counts or 'none'}", highlight=False)
    ends = ", ".join(f"{number} {end}" for end, number in seen.ends.items())
    console.print(f"accepted tasks: {ends or 'none'}; {seen.seconds:.0f} s in all", highlight=False)
    if set(seen.ends) - {"done"}:
        console.print("not every task became a video: this machine was too slow for the pace; see --rate")


@click.command(
    epilog="Examples:\n\n  make regression\n\n"
    "  python -m tests.drills.regression --accept   (and commit the new baseline)"
)
@click.option("--count", type=click.IntRange(1), default=REQUESTS, show_default=True, help="How many requests.")
@click.option("--rate", type=click.FloatRange(0.1), default=RATE, show_default=True, help="Requests a second.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    default=BASELINE,
    show_default=True,
    help="The result to compare with. A run that finds none, and misses nothing, writes it.",
)
@click.option("--accept", is_flag=True, help="Write the result of this run as the baseline, if enough was accepted.")
def command(count: int, rate: float, baseline: Path, accept: bool) -> None:
    """Send valid requests to a whole system and judge the answers. Exit status 1 on a miss."""
    console = Console()
    known = read_baseline(baseline)
    with tempfile.TemporaryDirectory() as folder:
        up = UpProcess(Path(folder))
        try:
            up.start()
            console.print(f"{count} requests, {rate:g} a second, AniSora and Phr00t in turns", highlight=False)
            seen = asyncio.run(send(up.url, count=count, rate=rate, console=console))
        finally:
            up.stop()
    figures = judge(seen, known)
    report(console, seen, figures)
    # a run that misses even the absolute numbers is no baseline
    if (accept or known is None) and all(figure.is_met for figure in judge(seen, None)):
        baseline.write_bytes(msgspec.json.format(msgspec.json.encode(result_of(seen, rate=rate)), indent=1) + b"\n")
        console.print(f"the baseline is now {baseline}", highlight=False)
    raise SystemExit(0 if all(figure.is_met for figure in figures) else 1)


if __name__ == "__main__":
    command()
