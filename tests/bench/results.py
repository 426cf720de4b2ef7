"""What is measured, as it is kept in `results.json`. Pure."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct, structs


class Figure(Struct, frozen=True, kw_only=True):
    """How a figure is shown. *better* is the direction in which it wins; None for a figure that only describes."""

    title: str
    digits: int
    better: Callable[[float, float], bool] | None = None


def _more(ours: float, theirs: float) -> bool:
    return ours > theirs


def _less(ours: float, theirs: float) -> bool:
    return ours < theirs


FIGURES: Final[Mapping[str, Figure]] = {
    "open": Figure(title="open at once", digits=0),
    "goodput": Figure(title="done in time, tasks/s", digits=2),
    "refused_percent": Figure(title="refused, %", digits=0),
    "refused_p50_ms": Figure(title="refusal p50, ms", digits=1),
    "refused_p99_ms": Figure(title="refusal p99, ms", digits=1),
    "retry_after_s": Figure(title="Retry-After, s", digits=0),
    "again_percent": Figure(title="sent again then: accepted, %", digits=0),
    "again_s": Figure(title="answered after, s", digits=1),
    "early_percent": Figure(title="after half of it: accepted, %", digits=0),
    "per_s": Figure(title="requests/s", digits=0, better=_more),
    "p50_ms": Figure(title="p50, ms", digits=2, better=_less),
    "p99_ms": Figure(title="p99, ms", digits=2, better=_less),
    "all_p99_ms": Figure(title="p99 of all rounds, ms", digits=2, better=_less),
    "over_ms": Figure(title="more than called directly, ms", digits=0),
    "cpu_ms": Figure(title="CPU ms per task", digits=0, better=_less),
    "cpu_s": Figure(title="CPU s per 1,000, service", digits=2, better=_less),
    "broker_cpu_s": Figure(title="CPU s per 1,000, broker", digits=2, better=_less),
    "busy_percent": Figure(title="service's core busy, %", digits=0),
    "peak_mb": Figure(title="peak RSS, MB", digits=0, better=_less),
    "kv_reads": Figure(title="reads of KV for each", digits=2),
    "others_percent": Figure(title="all else on the machine, %", digits=0),
}


OTHERS: Final = "others_percent"
# The kernel's work for the load alone can take this much.
QUIET_PERCENT: Final = 25.0


# The order of the parts in the report.
ORDER: Final = (
    "accept",
    "poll",
    "waiters",
    "dispatch",
    "servers",
    "overhead",
    "swap",
    "overload",
    "refusals",
    "again",
    "tasks",
    "lanes",
)


class Series(Struct, frozen=True, kw_only=True):
    """The values of one figure of one contender, one for each round, in order."""

    contender: str
    figure: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def text(self) -> str:
        """The median, and the range where there is one."""
        digits = FIGURES[self.figure].digits
        shown = f"{self.median:,.{digits}f}"
        if len(self.values) == 1:
            return shown
        return f"{shown} ({min(self.values):,.{digits}f} to {max(self.values):,.{digits}f})"


class Absent(Struct, frozen=True):
    """A contender that was not run, and why."""

    contender: str
    reason: str


class Part(Struct, frozen=True, kw_only=True):
    """What one part measured, such as accept, in turns and in one run at the time *when*.

    *elsewhere* are the facts in which the part differs from the rest of the report: another machine, another version.
    """

    name: str
    title: str
    when: str = ""
    series: tuple[Series, ...]
    absent: tuple[Absent, ...] = ()
    notes: tuple[str, ...] = ()
    elsewhere: dict[str, str] = {}

    def find(self, contender: str, figure: str) -> Series | None:
        """The series of *figure* of *contender*; None where it was not measured."""
        return next((each for each in self.series if (each.contender, each.figure) == (contender, figure)), None)

    @property
    def contenders(self) -> tuple[str, ...]:
        """The contenders that were measured, in the order of the first round."""
        return tuple(dict.fromkeys(each.contender for each in self.series))


class Results(Struct, frozen=True, kw_only=True):
    """What the report is made from. *facts* names the machine, the versions and the settings."""

    facts: dict[str, str]
    parts: tuple[Part, ...]

    def part(self, name: str) -> Part | None:
        return next((each for each in self.parts if each.name == name), None)

    def replaced_by(self, newer: "Results") -> "Results":
        """*newer*, plus the parts of these results that *newer* lacks. Each of those says in which facts it differs."""
        kept = (structs.replace(part, elsewhere=self._unlike(part, newer.facts)) for part in self.parts)
        by_name = {part.name: part for part in (*kept, *newer.parts)}
        return Results(facts=newer.facts, parts=tuple(by_name[name] for name in _ordered(by_name)))

    def _unlike(self, part: Part, facts: Mapping[str, str]) -> dict[str, str]:
        return {name: fact for name, fact in (self.facts | part.elsewhere).items() if facts.get(name) != fact}


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
