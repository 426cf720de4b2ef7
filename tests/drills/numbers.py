"""`make numbers`: what the main job costs on this machine, next to the aims. Nothing here is a test.

This process also calls the same pipelines directly, in turns with the running system, so that both see the same
machine: the difference is what Warmlane adds.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec import json as msgjson
from rich.console import Console
from rich.progress import track
from rich.table import Table

from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationParameters
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from lane_worker.pipelines.video import write_video
from tests.kit.system import UpProcess

ROUNDS = 40
REST_S = 0.05


def main() -> None:
    """Starts a system, measures, prints a table, stops it."""
    console = Console()
    torch.set_num_threads(1)
    catalog = load_settings().catalog("tiny")
    with tempfile.TemporaryDirectory() as folder:
        up = UpProcess(Path(folder))
        console.print("starting; tiny pipelines are built on the way")
        begun_s = time.monotonic()
        up.start()
        first_s = time.monotonic() - begun_s
        up.interrupt()
        begun_s = time.monotonic()
        up.start()
        again_s = time.monotonic() - begun_s
        try:
            rows = list(measure(up, catalog, Path(folder)))
        finally:
            up.stop()
    table = Table("figure", "measured", "aimed at", title="The main job, on this machine")
    table.add_row("`make run` to both lanes warm, first time (s)", f"{first_s:.1f}", "≤ 20")
    table.add_row("`make run` to both lanes warm, again (s)", f"{again_s:.1f}", "≤ 20")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def measure(up: UpProcess, catalog: Catalog, folder: Path) -> Iterable[tuple[str, str, str]]:
    """The rows of the table, one after the other."""
    accept_ms: list[float] = []
    start_ms: list[float] = []
    added: dict[str, list[float]] = {model: [] for model in catalog.models}
    pipelines = {
        name: load_pipeline(entry.checkpoint, up.data_dir / "models", device="cpu")
        for name, entry in catalog.models.items()
    }
    names = [name for _ in range(ROUNDS) for name in catalog.models]
    for number, name in enumerate(track(names, description="measuring")):
        begun_s = time.perf_counter()
        task = up.submit(model=name)
        accepted_s = time.perf_counter()
        done = up.ended(task["id"])
        ended_s = time.perf_counter()
        parameters = msgjson.decode(json.dumps(done["parameters"]), type=GenerationParameters)
        direct_s = seconds(partial(direct, pipelines[name], parameters, folder))
        if number >= 4:  # the first requests for each model fill caches on both sides
            accept_ms.append((accepted_s - begun_s) * 1e3)
            start_ms.append(publish_to_start_ms(done))
            added[name].append((ended_s - begun_s - direct_s) * 1e3)
        time.sleep(REST_S)  # the system is idle between two requests: that is the case to measure
    yield "accept, p50 (ms)", f"{statistics.median(accept_ms):.1f}", ""
    yield "accept, p99 (ms)", f"{percentile(accept_ms, 99):.1f}", "≤ 30"
    yield "publish → inference start, p50 (ms)", f"{statistics.median(start_ms):.1f}", "≤ 5"
    for name, values in added.items():
        yield f"submit → done, less the direct call, {name}, p50 (ms)", f"{statistics.median(values):.0f}", "≤ 60"
    for name in catalog.models:
        yield f"lane supervisor, {name} (MB resident)", megabytes(up.find(f"warmlane lane --model {name}")), "≤ 60"
    yield "gateway (MB resident)", megabytes(up.find("warmlane gateway")), "≤ 150"


def direct(pipeline: Any, parameters: GenerationParameters, folder: Path) -> None:
    """Does what a script without Warmlane would do: call the pipeline, encode the video."""
    frames = run_pipeline(pipeline, parameters, None, lambda _: None)
    write_video(frames, folder / "direct.mp4", fps=parameters.fps)


def publish_to_start_ms(task: dict[str, Any]) -> float:
    """The time from just before the publish to the pipeline's first step."""
    at = {entry["event"]: datetime.fromisoformat(entry["at"]) for entry in task["timeline"]}
    return (at["inference_started"] - datetime.fromisoformat(task["queued_at"])).total_seconds() * 1e3


def seconds(call: Callable[[], None]) -> float:
    """How long *call* takes."""
    begun_s = time.perf_counter()
    call()
    return time.perf_counter() - begun_s


def percentile(values: list[float], percent: int) -> float:
    """The value that *percent* of *values* do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def megabytes(pid: int) -> str:
    """The resident set size of *pid*."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return f"{next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024:.0f}"


if __name__ == "__main__":
    main()
