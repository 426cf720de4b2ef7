"""`make observe`: all that an operator must be able to see (docs/operate/observability.md), caused and then looked for.

One system with an OTLP receiver, which hands all spans on to the real Jaeger where there is one
(`tests/kit/jaeger.py`). Each step causes something; what changed meanwhile in the metrics, the logs and the traces is
what the step has shown. `tests/e2e/test_observe.py` plays the same.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import click
import httpx
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.topology import DEGRADED_MAX_MSGS, work_subject
from lane_worker.forking.slot import read_note
from ops.nats.link import NatsLink
from ops.telemetry.metrics import CATALOGUE
from tests.faults.fleet import WINDOWS
from tests.kit.collector import Collector
from tests.kit.jaeger import MISSING, Jaeger, jaeger_program
from tests.kit.support import eventually, eventually_sync
from tests.kit.system import UpProcess

DOCS: Final = Path(__file__).parents[2] / "docs" / "operate" / "observability.md"
EXPORTS: Final = {"OTEL_METRIC_EXPORT_INTERVAL": "250", "OTEL_BSP_SCHEDULE_DELAY": "100"}
STEP_SECONDS: Final = "0.1"
NO_QUOTA: Final = '{"max_lanes": {}}'
# So long after a step its signals may come: a second look of everybody who looks once a second, and an export.
ARRIVES_S: Final = 15.0


class Row(Struct, frozen=True, kw_only=True):
    """One line of the table: what must be seen, the signal that shows it, and the step that causes it."""

    requirement: str
    signal: str
    cause: str
    panel: str
    alert: str


def rows(text: str) -> list[Row]:
    """The table of musts in docs/operate/observability.md."""
    table = text.split("<!-- musts -->")[1]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    found = []
    requirement = ""
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        requirement = cells[0] or requirement
        found.append(Row(requirement=requirement, signal=cells[1], cause=cells[2], panel=cells[3], alert=cells[4]))
    return found


class Step(Struct, kw_only=True):
    """What was done from *begun_at* to *ended_at*, and the tasks that it made, by a name for each.

    By *exported_at* everybody had exported what they counted.
    """

    name: str
    begun_at: datetime
    ended_at: datetime
    exported_at: datetime
    tasks: dict[str, str]


def settings_for(folder: Path) -> Path:
    """The packaged settings with short windows and generations of one small frame."""
    settings: dict[str, Any] = json.loads(
        resources.files("contracts").joinpath("inference_settings.json").read_text(encoding="utf-8")
    )
    settings["windows"] |= WINDOWS
    settings["models"]["phr00t"]["enforcement"] = "report"
    for model in settings["models"].values():
        geometry = model["profiles"]["tiny"]["geometry"]
        geometry["num_frames"] |= {"default": 1, "minimum": 1}
        for side in ("width", "height"):
            geometry[side] |= {"default": 32, "minimum": 32}
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


class Stage:
    """The system, the receiver, and the steps so far."""

    def __init__(self, folder: Path, **environment: str) -> None:
        """*environment* is added to that of `warmlane up`."""
        program = jaeger_program()
        self.jaeger = None if program is None else Jaeger(program, folder)
        self.collector = Collector(hand_on=None if self.jaeger is None else self.jaeger.take)
        self.quota = folder / "quota.json"
        self.quota.write_text(NO_QUOTA)
        options = ["--gpus", "2", "--quota", str(self.quota), "--settings", str(settings_for(folder))]
        self.up = UpProcess(
            folder,
            *options,
            "--step-seconds",
            STEP_SECONDS,
            warm=["anisora"],
            OTEL_EXPORTER_OTLP_ENDPOINT=self.collector.url,
            **EXPORTS,
            **environment,
        )
        self.steps: dict[str, Step] = {}

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Step]:
        """Everything from here to the end of the block is *name*."""
        now = datetime.now(UTC)
        step = Step(name=name, begun_at=now, ended_at=now, exported_at=now, tasks={})
        yield step
        step.ended_at = datetime.now(UTC)
        self.steps[name] = step
        # what was caused is exported before the next step begins: two exports later, since one may be under way
        heard = self.collector.exports()
        await self._eventually(
            lambda: all(
                count >= heard[process] + 2 for process, count in self.collector.exports().items() if process in heard
            )
        )
        step.exported_at = datetime.now(UTC)

    def lines(self) -> list[dict[str, Any]]:
        """What every process logged, a dict a line."""
        logs = (self.up.data_dir / "logs").glob("*.log")
        return [line for log in logs for line in self.up.log_lines(log.stem)]

    def close(self) -> None:
        self.up.stop()
        self.collector.close()
        if self.jaeger is not None:
            self.jaeger.close()

    # What the steps do

    async def start(self) -> None:
        async with self.step("start"):
            await asyncio.to_thread(self.up.start)

    async def lane_task(self) -> None:
        async with self.step("lane task") as step:
            step.tasks["lane"] = await self._done("anisora")

    async def degraded_task(self) -> None:
        async with self.step("degraded task") as step:
            step.tasks["degraded"] = await self._done("phr00t")

    async def manual_fallback(self) -> None:
        async with self.step("manual fallback") as step:
            await self._mode("anisora", "degraded")
            step.tasks["swapped"] = await self._done("anisora")
            await self._fallback_is_shown("anisora", "manual")
            await self._mode("anisora", "auto")
            # it is over as soon as the switch is back; a gateway writes that down within a second, and says so
            await self._eventually(lambda: not self._running_fallbacks("anisora"))
            await self._eventually(
                lambda: any(
                    line["event"] == "fallback_ended" and datetime.fromisoformat(line["timestamp"]) >= step.begun_at
                    for line in self.lines()
                )
            )

    async def quota_fallback(self) -> None:
        async with self.step("quota fallback") as step:
            self.quota.write_text('{"max_lanes": {"phr00t": 0}}')
            await self._lanes_say("phr00t", "quota_denied")
            step.tasks["quota"] = await self._done("phr00t")
            await self._fallback_is_shown("phr00t", "quota")
            self.quota.write_text(NO_QUOTA)
            await self._lanes_say("phr00t", "capacity_denied")

    async def rerouted_task(self) -> None:
        """A lane that is stopped is still believed for a while; its task is not left with it."""
        async with self.step("rerouted task") as step:
            lane = self.up.find("--name anisora-0")
            os.kill(lane, signal.SIGSTOP)
            try:
                step.tasks["rerouted"] = await self._submit("anisora")
                await self._ends(step.tasks["rerouted"], "done")
            finally:
                os.kill(lane, signal.SIGCONT)
            await self._warm("anisora")

    async def failed_task(self) -> None:
        """Its pipeline host dies in both attempts."""
        async with self.step("failed task") as step:
            step.tasks["failed"] = task_id = await self._submit("phr00t")
            for attempt in (1, 2):
                os.kill(await self._runs(task_id, attempt), signal.SIGKILL)
            await self._ends(task_id, "failed")

    async def cancelled_task(self) -> None:
        async with self.step("cancelled task") as step:
            step.tasks["cancelled"] = task_id = await self._submit("anisora")
            await self._runs(task_id, 1)
            await self._client.delete(f"/tasks/{task_id}")
            await self._ends(task_id, "failed")

    async def lost_lane(self) -> None:
        async with self.step("lost lane") as step:
            step.tasks["requeued"] = task_id = await self._submit("anisora")
            await self._runs(task_id, 1)
            os.kill(self.up.find("--name anisora-0"), signal.SIGKILL)
            await self._ends(task_id, "done")
            await self._warm("anisora")

    async def overload(self) -> None:
        """More than fits, and more than can be served in time: refused at once, refused later, and dropped."""
        async with self.step("overload") as step:
            await self._mode("anisora", "degraded")
            later = [self._post("anisora", prefer="respond-async") for _ in range(DEGRADED_MAX_MSGS - 4)]
            held = [self._post("anisora") for _ in range(8)]
            answers = [answer.json() for answer in await asyncio.gather(*later, *held)]
            for limit in ("depth", "wait"):
                refused = [answer for answer in answers if answer.get("limit") == limit]
                assert refused, [answer.get("code", answer.get("status")) for answer in answers]
            waited = next(answer for answer in answers if answer.get("limit") == "wait")
            step.tasks["overloaded"] = waited["instance"].rsplit("/", 1)[-1]
            ids = [answer["id"] for answer in answers if "id" in answer]
            for task_id in ids:
                await self._ends(task_id, "done", "failed")
            await self._mode("anisora", "auto")

    async def refused_request(self) -> None:
        async with self.step("refused request"):
            answer = await self._post("anisora", steps=99)
            assert answer.status_code == 422, answer.text

    async def replaced_value(self) -> None:
        """docs/operate/rollback.md: a wrong fixed value is replaced, and said."""
        async with self.step("replaced value") as step:
            answer = await self._post("phr00t", steps=99)
            assert answer.status_code == 202, answer.text
            step.tasks["replaced"] = str(answer.json()["id"])
            await self._ends(step.tasks["replaced"], "done")

    async def unreadable_message(self) -> None:
        async with self.step("unreadable message"):
            link = await NatsLink.connect(self.up.nats_url, name="observe")
            await link.messages.publish(work_subject("lane", "anisora", "nobody"), b"no task")
            await link.close()
            await self._eventually(lambda: self.collector.value("warmlane.unreadable", kind="task") > 0)

    STEPS: Final = (
        start,
        lane_task,
        degraded_task,
        manual_fallback,
        quota_fallback,
        cancelled_task,
        failed_task,
        refused_request,
        replaced_value,
        unreadable_message,
        overload,
        rerouted_task,
        lost_lane,
    )

    # How they do it

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=self.up.url, timeout=60) as client:
            self._client = client
            yield

    async def play(self, on_step: Callable[[str], None]) -> None:
        """All steps, each passed to *on_step* before it begins; then until everything that they caused has arrived."""
        async with self._http():
            for act in self.STEPS:
                on_step(act.__name__.replace("_", " "))
                await act(self)

    async def _post(self, model: str, *, prefer: str = "", **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "a red fox"} | fields
        return await self._client.post("/generate", json=body, headers={"prefer": prefer} if prefer else {})

    async def _submit(self, model: str) -> str:
        answer = await self._post(model)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def _done(self, model: str) -> str:
        task_id = await self._submit(model)
        await self._ends(task_id, "done")
        return task_id

    async def _ends(self, task_id: str, *statuses: str) -> None:
        async def ended() -> str | None:
            task = (await self._client.get(f"/tasks/{task_id}?wait=20")).json()
            return str(task["status"]) if task["status"] in ("done", "failed") else None

        status = await eventually(ended, within_s=60)
        assert status in statuses, (await self._client.get(f"/tasks/{task_id}")).text

    async def _runs(self, task_id: str, attempt: int) -> int:
        """The process of the pipeline host, when it runs *attempt*."""

        async def runs() -> bool:
            task = (await self._client.get(f"/tasks/{task_id}")).json()
            return (task["status"], task["attempt"]) == ("processing", attempt)

        await eventually(runs, within_s=60)
        # the record says when it is claimed; the lock's note says what the host runs
        host = await eventually(lambda: asyncio.sleep(0, _host_with(self.up.data_dir, task_id, attempt)), within_s=60)
        assert host is not None
        return host

    async def _mode(self, model: str, mode: str) -> None:
        answer = await self._client.put(f"/admin/lanes/{model}/mode", json={"mode": mode})
        assert answer.status_code == 200, answer.text

    async def _lanes_say(self, model: str, state: str) -> None:
        async def said() -> bool:
            ready = (await self._client.get("/readyz")).json()
            return state in ready["models"][model]["lanes"]

        await eventually(said)

    async def _warm(self, model: str) -> None:
        await eventually(lambda: self._is_warm(model), within_s=60)

    async def _is_warm(self, model: str) -> bool:
        return bool((await self._client.get("/readyz")).json()["models"][model]["warm"])

    def _running_fallbacks(self, model: str, **cause: str) -> float:
        return self.collector.value("warmlane.fallback.active", model=model, **cause)

    async def _fallback_is_shown(self, model: str, cause: str) -> None:
        await self._eventually(lambda: self._running_fallbacks(model, cause=cause) > 0)

    async def _eventually(self, look: Callable[[], Any]) -> None:
        async def looked() -> Any:
            return look()

        await eventually(looked)

    # What is seen of it

    def seen(self, row: Row) -> str:
        """How the signal of *row* changed in its step; empty where it did not."""
        step = self.steps[row.cause]
        kind, _, rest = row.signal.partition(" ")
        name = re.findall(r"`([^`]+)`", rest)[0]
        look: Mapping[str, Callable[[Step, str], str]] = {
            "metric": self._metric,
            "log": self._log,
            "span": self._span,
            "answer": self._answer,
        }
        return look[kind](step, name)

    def seen_at_last(self, row: Row) -> str:
        """As `seen`, when it has arrived."""
        with contextlib.suppress(AssertionError):
            return eventually_sync(lambda: self.seen(row), within_s=ARRIVES_S)
        return ""

    def _metric(self, step: Step, text: str) -> str:
        name, labels = parse_series(text)
        changes = self.collector.changes(name, step.begun_at, step.exported_at, **labels)
        return ", ".join(f"{before:g} → {after:g}" for before, after in changes[:1])

    def _log(self, step: Step, event: str) -> str:
        lines = [line for line in self.lines() if line["event"] == event and self._is_of(step, line["timestamp"])]
        return f"{len(lines)} lines" if lines else ""

    def _span(self, step: Step, name: str) -> str:
        spans = [span for span in self.collector.spans if span.name == name and self._is_in(step, span.begun_at)]
        return f"{len(spans)} spans" if spans else ""

    def _answer(self, step: Step, field: str) -> str:
        """What a user sees at `GET /tasks/ID`."""
        tasks = [self.up.task(task_id) for task_id in step.tasks.values()]
        return ", ".join(sorted({str(task[field]) for task in tasks if task.get(field)}))

    def _is_of(self, step: Step, timestamp: str) -> bool:
        return self._is_in(step, datetime.fromisoformat(timestamp))

    def _is_in(self, step: Step, at: datetime) -> bool:
        return step.begun_at <= at <= step.exported_at  # the next one begins after that


def parse_series(text: str) -> tuple[str, dict[str, str]]:
    """The metric, by its own name, and the labels of a series as Prometheus writes it."""
    match = re.fullmatch(r"(\w+)(?:\{(.*)\})?", text)
    assert match is not None, text
    names = {metric.prometheus_name: metric.name for metric in CATALOGUE.values()}
    labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
    return names[match[1]], labels


def _host_with(data_dir: Path, task_id: str, attempt: int) -> int | None:
    notes = [read_note(path) for path in (data_dir / "locks").glob("*.lock")]
    return next((note.pid for note in notes if note and (note.task_id, note.attempt) == (task_id, attempt)), None)


def warnings_of(jaeger: Jaeger) -> list[str]:
    """What Jaeger finds wrong with a trace of any service."""
    traces = [trace for service in jaeger.get("/api/services") for trace in jaeger.find(service)]
    return sorted(
        {
            f"{span['operationName']}: {warning}"
            for trace in traces
            for span in trace["spans"]
            for warning in span.get("warnings") or []
        }
    )


def report(console: Console, stage: Stage, musts: Sequence[Row]) -> int:
    """Prints every line of the table with what was seen; returns how many were not, and what Jaeger warns of."""
    table = Table(title="What operators must be able to see")
    for column in ("requirement", "signal", "caused by", "seen"):
        table.add_column(column, overflow="fold")
    missing = 0
    last = ""
    for row in musts:
        seen = stage.seen_at_last(row)
        missing += not seen
        signal_text = row.signal.replace("`", "")
        table.add_row(
            "" if row.requirement == last else row.requirement, signal_text, row.cause, seen or "[red]nothing[/]"
        )
        last = row.requirement
    console.print(table)
    if stage.jaeger is None:
        console.print(f"{MISSING}: what it shows was not looked at")
    else:
        warnings = warnings_of(stage.jaeger)
        missing += len(warnings)
        traces = len(stage.jaeger.find("warmlane-gateway"))
        console.print(
            f"Jaeger keeps {traces} traces of the gateway; of its warnings there are {len(warnings)}", *warnings
        )
    console.print(f"{len(musts) - missing} of {len(musts)} signals seen")
    return missing


@click.command(epilog="Example:\n\n  python -m tests.drills.observe")
def main() -> None:
    """Start a system with an OTLP receiver, cause what an operator must be able to see, and print what was seen."""
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        try:
            with console.status("starting") as status:
                asyncio.run(stage.play(status.update))
                missing = report(console, stage, rows(DOCS.read_text(encoding="utf-8")))
        finally:
            stage.close()
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
