"""The system of `make observe`, the receiver of its exports, and the steps so far."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import Struct

from tests.drills.observe_caller import Caller
from tests.faults.fleet import WINDOWS
from tests.kit.collector import Collector
from tests.kit.gate import Gate, gated_forks
from tests.kit.jaeger import Jaeger, jaeger_program
from tests.kit.support import eventually
from tests.kit.system import UpProcess

EXPORTS: Final = {"OTEL_METRIC_EXPORT_INTERVAL": "250", "OTEL_BSP_SCHEDULE_DELAY": "100"}
STEP_SECONDS: Final = "0.1"
NO_QUOTA: Final = '{"max_lanes": {}}'


class Step(Struct, kw_only=True):
    """What was done from *begun_at* to *ended_at*, and the tasks that it made, by a name for each.

    By *exported_at* every process had exported its metrics.
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

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
            **gated_forks(),
        )
        self.steps: dict[str, Step] = {}

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Step]:
        """Everything from here to the end of the block is the step *name*."""
        now = datetime.now(UTC)
        step = Step(name=name, begun_at=now, ended_at=now, exported_at=now, tasks={})
        yield step
        step.ended_at = datetime.now(UTC)
        self.steps[name] = step
        # the effects are exported before the next step begins: two exports later, since one may be under way
        heard = self.collector.exports()
        await self.until(
            lambda: all(
                count >= heard[process] + 2 for process, count in self.collector.exports().items() if process in heard
            )
        )
        step.exported_at = datetime.now(UTC)

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Within the block there is a `caller`."""
        async with httpx.AsyncClient(base_url=self.up.url, timeout=60) as client:
            self.caller = Caller(self.up, client)
            yield

    def gate(self) -> Gate:
        """A gate that holds a task while the step acts."""
        return Gate(self._folder)

    def lines(self) -> list[dict[str, Any]]:
        """What every process logged, a dict a line."""
        logs = (self.up.data_dir / "logs").glob("*.log")
        return [line for log in logs for line in self.up.log_lines(log.stem)]

    def running_fallbacks(self, model: str, **cause: str) -> float:
        return self.collector.value("warmlane.fallback.active", model=model, **cause)

    async def fallback_is_shown(self, model: str, cause: str) -> None:
        await self.until(lambda: self.running_fallbacks(model, cause=cause) > 0)

    async def until(self, look: Callable[[], Any]) -> None:
        """Returns when *look* finds something."""

        async def looked() -> Any:
            return look()

        await eventually(looked)

    def close(self) -> None:
        self.up.stop()
        self.collector.close()
        if self.jaeger is not None:
            self.jaeger.close()
