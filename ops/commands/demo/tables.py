"""The figures of a demo and its tables. Pure."""

import math
from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from contracts.memory import SwapReceipt
from ops.commands.demo.runs import Run


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of *values* that at least *percent* % of them do not exceed (nearest rank). It needs one value."""
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
    # tiny pipelines are too small to show in the memory: for them this is the proof
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


def choices_of(runs: Sequence[Run]) -> list[str]:
    """Why the degraded worker started each of *runs* when it did: a line for each reason, with its runs' numbers."""
    found: dict[str, list[str]] = {}
    for run in runs:
        claims = [entry.detail for entry in run.task.timeline if entry.event == "claim"] if run.task else []
        reason = claims[-1].partition(": ")[2] if claims else ""
        if reason:
            found.setdefault(reason, []).append(str(run.number))
    return [f"{', '.join(numbers)}: {reason}" for reason, numbers in found.items()]
