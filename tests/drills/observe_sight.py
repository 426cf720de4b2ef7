"""What was seen of the steps: the table of musts in docs/operate/observability.md, row by row."""

import contextlib
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

from ops.telemetry.metrics import CATALOGUE
from tests.drills.observe_stage import Stage, Step
from tests.kit.support import eventually_sync

DOCS: Final = Path(__file__).parents[2] / "docs" / "operate" / "observability.md"
# The signals of a step come seconds after it: a second look of every process that looks once a second, and an export.
# After this time something is broken, on a busy machine too.
ARRIVES_S: Final = 60.0


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


class Sight:
    """What *stage* shows of its steps."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def seen(self, row: Row) -> str:
        """How the signal of *row* changed in its step; empty where it did not."""
        step = self._stage.steps[row.cause]
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
        """As `seen`, but waits until the signal has arrived."""
        with contextlib.suppress(AssertionError):
            return eventually_sync(lambda: self.seen(row), within_s=ARRIVES_S)
        return ""

    def _metric(self, step: Step, text: str) -> str:
        name, labels = parse_series(text)
        changes = self._stage.collector.changes(name, step.begun_at, step.exported_at, **labels)
        return ", ".join(f"{before:g} → {after:g}" for before, after in changes[:1])

    def _log(self, step: Step, event: str) -> str:
        lines = [
            line for line in self._stage.lines() if line["event"] == event and self._is_of(step, line["timestamp"])
        ]
        return f"{len(lines)} lines" if lines else ""

    def _span(self, step: Step, name: str) -> str:
        spans = [span for span in self._stage.collector.spans if span.name == name and self._is_in(step, span.begun_at)]
        return f"{len(spans)} spans" if spans else ""

    def _answer(self, step: Step, field: str) -> str:
        """What a user sees at `GET /tasks/ID`."""
        tasks = [self._stage.up.task(task_id) for task_id in step.tasks.values()]
        return ", ".join(sorted({str(task[field]) for task in tasks if task.get(field)}))

    def _is_of(self, step: Step, timestamp: str) -> bool:
        return self._is_in(step, datetime.fromisoformat(timestamp))

    def _is_in(self, step: Step, at: datetime) -> bool:
        return step.begun_at <= at <= step.exported_at  # the next step begins after that


def parse_series(text: str) -> tuple[str, dict[str, str]]:
    """The metric's own name and the labels of a series in Prometheus's notation."""
    match = re.fullmatch(r"(\w+)(?:\{(.*)\})?", text)
    assert match is not None, text
    names = {metric.prometheus_name: metric.name for metric in CATALOGUE.values()}
    labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
    return names[match[1]], labels
