"""What a soak shows: was anything lost, and did anything grow? Pure, but for `report`, `write` and `plot`."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from ops.commands.capacity.plots import plot_into
from tests.bench.machine import machine, system
from tests.drills.soak_samples import HOST, Sample, as_columns, thinned

GATEWAY_GROWTH: Final = 0.20
# Where the gateway's memory is taken: after the first tenth of the submissions, and at their end; each over SPAN.
AFTER, END, SPAN = 0.10, 1.00, 0.03
SECOND_QUARTER: Final = (0.25, 0.50)
LAST_QUARTER: Final = (0.75, 1.00)
# Fewer samples say nothing about a quarter.
SAMPLES_MIN: Final = 5
MB: Final = 1e6
KEPT_SAMPLES: Final = 240


class Rule(Struct, frozen=True):
    """By how much the median of the last quarter may exceed that of the second: a share, or *floor* if that is more.

    *by_rate*: the series is proportional to the tasks a second, so the limit is as well.
    """

    share: float
    floor: float
    by_rate: bool
    unit: str


# A Go heap breathes, nats-server removes streams in whole blocks, and clients come and go.
RULES: Final[Mapping[str, Rule]] = {
    "rss": Rule(0.10, 8 * MB, False, "MB"),
    "files": Rule(0.0, 5, False, ""),
    "messages": Rule(0.20, 200, True, ""),
    "bytes": Rule(0.20, 2 * MB, True, "MB"),
    "objects": Rule(0.20, 200, True, ""),
    "disk": Rule(0.20, 16 * MB, True, "MB"),
}
WORDS: Final = {
    "rss": "resident memory of {}",
    "files": "open files of {}",
    "messages": "messages in {}",
    "bytes": "bytes in {}",
    "objects": "files in folder {}",
    "disk": "disk taken by folder {}",
}
# Processes write logs for every task, and never remove them.
LOGS: Final = frozenset({"objects logs", "disk logs"})
CPU: Final = "cpu "


class Seen(Struct, frozen=True, kw_only=True):
    """All that was observed. *ends* counts the accepted tasks by how they ended, *refused* the 503s by their code,
    *asked* the other requests, *asked_again* the requests that were repeated on a new connection, and *processes* those
    seen of each kind."""

    samples: tuple[Sample, ...]
    accepted: int
    ends: Mapping[str, int]
    lost: int
    moved_after_end: int
    refused: Mapping[str, int]
    asked: Mapping[str, int]
    asked_again: int = 0
    seconds: float
    keep_s: float
    processes: Mapping[str, int]


class Line(Struct, frozen=True, kw_only=True):
    """A line of the table: *first* and *last* are compared, and *limit* is what *last* may be; None: unknown."""

    what: str
    first: float | None
    last: float | None
    limit: float | None
    unit: str = ""

    @property
    def is_met(self) -> bool:
        return self.last is not None and self.limit is not None and self.last <= self.limit

    @property
    def verdict(self) -> str:
        """`met`, or by how much the limit was missed."""
        if self.last is None or self.limit is None:
            return "not judged: too few samples"
        return "met" if self.is_met else f"missed by {self.shown(self.last - self.limit)}"

    def shown(self, value: float | None) -> str:
        """A value of this line, with its unit."""
        if value is None:
            return "-"
        return f"{value / MB:,.1f} MB" if self.unit == "MB" else f"{value:,.0f}"


def judge(seen: Seen) -> list[Line]:
    """The verdicts on a run."""
    known = sum(seen.ends.values())
    lines = [
        Line(what="accepted tasks without an end", first=0, last=seen.accepted - known, limit=0),
        Line(what="tasks that moved after their end", first=0, last=seen.moved_after_end, limit=0),
        Line(
            what="processes that ended by themselves",
            first=0,
            last=sum(count - 1 for name, count in seen.processes.items() if not name.endswith(HOST)),
            limit=0,
        ),
    ]
    before, now = (median_at(seen, "rss gateway", share - SPAN, share) for share in (AFTER + SPAN, END))
    lines.append(
        Line(
            what="resident memory of gateway, after the first tenth and at the end",
            first=before,
            last=now,
            limit=None if before is None else before * (1 + GATEWAY_GROWTH),
            unit="MB",
        )
    )
    return [*lines, *grown(seen)]


def grown(seen: Seen) -> Iterator[Line]:
    """A line for each series: the last quarter against the second."""
    every = {name for sample in seen.samples for name in sample.values if not name.startswith(CPU)}
    names = sorted(every - LOGS, key=_place)
    rates = [rate(within(seen, *quarter)) for quarter in (SECOND_QUARTER, LAST_QUARTER)]
    for name in names:
        kind, _, owner = name.partition(" ")
        rule = RULES[kind]
        first, last = (median_at(seen, name, *quarter) for quarter in (SECOND_QUARTER, LAST_QUARTER))
        limit = None
        if first is not None and rates[0]:
            as_much = first * (rates[1] / rates[0] if rule.by_rate else 1.0)
            limit = max(as_much * (1 + rule.share), first + rule.floor)
        yield Line(what=WORDS[kind].format(owner), first=first, last=last, limit=limit, unit=rule.unit)


def within(seen: Seen, since: float, until: float) -> list[Sample]:
    """The samples taken while this part of the submissions was accepted."""
    return [each for each in seen.samples if since * seen.accepted <= each.accepted <= until * seen.accepted]


def median_at(seen: Seen, name: str, since: float, until: float) -> float | None:
    """The median of a series while this part of the submissions was accepted; None where there are too few samples."""
    values = [each.values[name] for each in within(seen, since, until) if name in each.values]
    return statistics.median(values) if len(values) >= SAMPLES_MIN else None


def rate(samples: Sequence[Sample]) -> float:
    """Tasks accepted a second; 0 where that is unknown."""
    if len(samples) < 2 or samples[-1].at_s == samples[0].at_s:
        return 0.0
    return (samples[-1].accepted - samples[0].accepted) / (samples[-1].at_s - samples[0].at_s)


def _place(name: str) -> tuple[int, str]:
    return list(RULES).index(name.partition(" ")[0]), name


def sentences_of(seen: Seen) -> Iterator[str]:
    """What was done, in sentences."""

    def counted(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())) or "none"

    per_s = seen.accepted / seen.seconds if seen.seconds else 0.0
    yield f"{seen.accepted:,} submissions accepted in {seen.seconds:,.0f} s, {per_s:.0f} a second"
    yield f"a task was kept for {seen.keep_s:g} s after its end"
    yield f"they ended: {counted(seen.ends)}; refused and sent again: {counted(seen.refused)}"
    yield f"clients also asked for: {counted(seen.asked)}"
    yield f"answers that were asked for again, as the connection had been closed: {seen.asked_again:,}"
    hosts = {name: count - 1 for name, count in seen.processes.items() if name.endswith(HOST)}
    yield f"pipeline hosts that were replaced by fresh ones (`recycle_after_tasks`): {counted(hosts)}"
    used_s = {name: cpu_per_1000(seen, name) for name in seen.processes if not name.endswith(HOST)}
    yield f"CPU seconds for 1,000 tasks: {', '.join(f'{name} {used:.1f}' for name, used in used_s.items() if used)}"
    logs = [each.values["disk logs"] for each in seen.samples if "disk logs" in each.values]
    if logs:
        yield f"logs grew by {(logs[-1] - logs[0]) / MB:,.1f} MB: a file is put aside only when its process starts"


def cpu_per_1000(seen: Seen, process: str) -> float:
    """The CPU seconds that *process* used for each 1,000 tasks, while it was seen. 0 where that is unknown."""
    found = [each for each in seen.samples if f"{CPU}{process}" in each.values]
    if not found or found[-1].accepted == found[0].accepted:
        return 0.0
    used_s = found[-1].values[f"{CPU}{process}"] - found[0].values[f"{CPU}{process}"]
    return 1_000 * used_s / (found[-1].accepted - found[0].accepted)


def report(console: Console, seen: Seen, lines: Sequence[Line]) -> None:
    """Prints the table."""
    table = Table("what", "second quarter", "last quarter", "limit", "", title="Soak")
    for line in lines:
        colour = "green" if line.is_met else "red"
        shown = (line.shown(value) for value in (line.first, line.last, line.limit))
        table.add_row(line.what, *shown, f"[{colour}]{line.verdict}[/]")
    console.print(table)
    for sentence in sentences_of(seen):
        console.print(sentence, highlight=False)


def markdown(seen: Seen, lines: Sequence[Line], facts: Mapping[str, str]) -> str:
    """The report."""
    missed = [line.what for line in lines if not line.is_met]
    verdict = f"Missed: {'; '.join(missed)}." if missed else "Nothing was lost, and nothing grew."
    return "\n".join(
        [
            "# Soak",
            "",
            "Written by `make soak`, which measures all this again on your machine; do not edit. The whole system of "
            "`warmlane up` runs, with pipelines that do nothing: everything else (gateway, nats-server, supervisor, "
            "lanes, degraded worker, pipeline hosts, artifact store) is the product's own.",
            "",
            f"{verdict} Medians of the second quarter of the submissions are compared with those of the last one; "
            "what is kept of each task may be more where more tasks a second came.",
            "",
            "| | second quarter | last quarter | limit | |",
            "|---|---|---|---|---|",
            *(
                f"| {line.what} | {line.shown(line.first)} | {line.shown(line.last)} | {line.shown(line.limit)} "
                f"| {line.verdict} |"
                for line in lines
            ),
            "",
            "![Soak](soak.svg)",
            "",
            *(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in sentences_of(seen)),
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {fact} |" for name, fact in facts.items()),
            "",
        ]
    )


def write(folder: Path, seen: Seen, lines: Sequence[Line]) -> None:
    """`soak.md`, `soak.json` with the samples, and `soak.svg`. Raises click.ClickException, OSError."""
    facts = {
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": metadata.version("warmlane"),
        "machine": machine(),
        "system": system(),
        "samples": f"{len(seen.samples):,}, one a second at most; in `soak.json`, {KEPT_SAMPLES} of them",
    }
    kept = thinned(list(seen.samples), KEPT_SAMPLES)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, **msgspec.structs.asdict(seen), "samples": as_columns(kept)}
    (folder / "soak.json").write_bytes(msgspec.json.encode(document) + b"\n")
    (folder / "soak.md").write_text(markdown(seen, lines, facts))
    plot(kept, folder / "soak.svg")


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Draws memory, open files, messages and disk over time. The same samples give the same bytes.

    Raises click.ClickException where matplotlib is not installed, OSError where the file cannot be written.
    """
    panels = (("rss", "resident memory, MB", MB), ("files", "open files", 1), ("messages", "messages", 1))
    with plot_into(path, extra="bench", size_in=(8, 7.5), font_size=7) as canvas:
        for axes, (kind, title, scale) in zip(canvas.subplots(3, 1, sharex=True), panels, strict=True):
            names = sorted({name for each in samples for name in each.values if name.startswith(f"{kind} ")})
            for name in names:
                points = [(each.at_s, each.values[name] / scale) for each in samples if name in each.values]
                # a stream that never held much would only fill the legend
                if kind != "messages" or max(value for _, value in points) >= 100:
                    axes.plot(*zip(*points, strict=True), linewidth=0.8, label=name.partition(" ")[2])
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.grid(visible=True, linewidth=0.3)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.set_xlabel("seconds")
