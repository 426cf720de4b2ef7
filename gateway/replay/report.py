"""A replay as a table, as words, and as JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from rich.markup import escape
from rich.table import Table

from contracts.order import Policy
from gateway.replay.day import RecordedDay
from gateway.replay.replaying import DayAccount, DayAccounts, ReplayTerms

HEADINGS: Final = ("requests", "served", "on lanes", "swaps", "refused", "wait p50", "p95", "longest")


def replay_table(happened: DayAccounts, replayed: DayAccounts) -> Table:
    """What happened, and below it what the replay made of the same requests: all, by model, by caller."""
    table = Table()
    for heading in ("", ""):
        table.add_column(heading)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    _rows(table, "all", happened.all, replayed.all)
    for what in ("models", "callers"):
        then: Mapping[str, DayAccount] = getattr(happened, what)
        now: Mapping[str, DayAccount] = getattr(replayed, what)
        table.add_section()
        for name, account in then.items():
            _rows(table, name, account, now[name])
    return table


def _rows(table: Table, name: str, happened: DayAccount, replayed: DayAccount) -> None:
    table.add_row(escape(name), "then", *_cells(happened))
    table.add_row("", "replayed", *_cells(replayed), style="bold")


def _cells(account: DayAccount) -> tuple[str, ...]:
    waits_s = (account.wait_p50_s, account.wait_p95_s, account.wait_longest_s)
    counts = (account.requests, account.served, account.on_lanes, account.swaps, account.refused)
    return (*map(str, counts), *("-" if wait_s is None else f"{wait_s:.1f} s" for wait_s in waits_s))


def policy_words(policy: Policy) -> str:
    """*policy* in words."""
    if policy.order == "fifo":
        return "fifo"
    return (
        f"{policy.order}, at most {policy.swap_share:.0%} of the time in swaps, slices of {policy.slice_max_s:g} s at "
        f"most, at least {policy.turn_share:.0%} for each class"
    )


def lines(day: RecordedDay, terms: ReplayTerms, unreadable: int) -> Iterator[str]:
    """What the table is based on, line by line."""
    yield f"{len(day.tasks)} requests, {day.begun_at:%Y-%m-%d %H:%M:%S} to {day.ended_at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"then:     {', '.join(day.orders) or 'no task was started by an order'}; lanes {_lanes(day.lanes)}"
    lanes = day.lanes if terms.lanes is None else terms.lanes
    yield (
        f"replayed: {policy_words(terms.policy)}; lanes {_lanes(lanes)}; {terms.places} places, "
        f"{terms.degraded_wait_s:g} s"
    )
    measured = day.measured.degraded
    runs = ", ".join(f"{model} {run_s:.1f} s" for model, run_s in sorted(measured.run_s.items())) or "none"
    swaps = ", ".join(f"{model} {swap_s:.1f} s" for model, swap_s in sorted(measured.swap_s.items())) or "none"
    yield f"measured: runs {runs}; swaps {swaps}"
    yield from notes(day, unreadable)


def notes(day: RecordedDay, unreadable: int) -> Iterator[str]:
    """What the replay does not know."""
    unswapped = sorted({task.model for task in day.tasks} - set(day.measured.degraded.swap_s))
    if unswapped:
        known = max(day.measured.degraded.swap_s.values(), default=0.0)
        yield f"No swap to {', '.join(unswapped)} was measured: one counts {known:.1f} s."
    if day.full_s:
        yield (
            f"The degraded queue was full for {day.full_s:.1f} s. What it refused then has no record, so it is in "
            "neither row."
        )
    if day.unended:
        yield f"{day.unended} tasks have not ended: they are in neither row."
    if day.unqueued:
        yield f"{day.unqueued} tasks ended before they waited: they are in neither row."
    if unreadable:
        yield f"{unreadable} records could not be read; perhaps a later version of Warmlane wrote them."


def _lanes(lanes: Mapping[str, int]) -> str:
    return ",".join(f"{model}={count}" for model, count in sorted(lanes.items()))


def as_json(
    day: RecordedDay, terms: ReplayTerms, happened: DayAccounts, replayed: DayAccounts, *, unreadable: int
) -> dict[str, Any]:
    """Everything that the table shows and is based on, for programs."""
    found: dict[str, Any] = {
        "begun_at": day.begun_at.isoformat(),
        "ended_at": day.ended_at.isoformat(),
        "orders": day.orders,
        "lanes": day.lanes,
        "measured": msgspec.to_builtins(day.measured),
        "full_s": day.full_s,
        "unended": day.unended,
        "unqueued": day.unqueued,
        "unreadable": unreadable,
        "terms": msgspec.to_builtins(terms),
        "happened": msgspec.to_builtins(happened),
        "replayed": msgspec.to_builtins(replayed),
        "notes": list(notes(day, unreadable)),
    }
    return found


def as_text(document: Mapping[str, Any]) -> str:
    """*document* as it is printed."""
    return json.dumps(document, indent=2)
