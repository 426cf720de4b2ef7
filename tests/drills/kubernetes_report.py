"""What a drill on Kubernetes shows: was anything lost or done twice, and was the cause shown? Pure."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

# A lane in one of these has nothing to explain.
_WELL: Final = frozenset({"warm", "busy", ""})


class Drill(Struct, frozen=True, kw_only=True):
    """One thing that is done to a running system. *cause*: a pattern of what `warmlane status` must show meanwhile, as
    `MODEL STATE DETAIL` of a lane or `leader NAME`; empty where only the caller could notice it."""

    name: str
    what: str
    cause: str = ""


class Outcome(Struct, frozen=True, kw_only=True):
    """What the clients, the records and `warmlane status` showed during a drill. *seconds*: what was measured, by name.
    *skipped*: why the drill was not done. *broke*: why it was not done to its end."""

    drill: Drill
    accepted: int = 0
    done: int = 0
    by_degraded: int = 0
    second_attempts: int = 0
    failed: Mapping[str, int] = {}
    given_up: int = 0
    lost: int = 0
    doubled: int = 0
    slowest_s: float = 0.0
    shown: Sequence[str] = ()
    seconds: Mapping[str, float] = {}
    notes: Sequence[str] = ()
    skipped: str = ""
    broke: str = ""


def outcome_of(
    drill: Drill,
    said: Sequence[Mapping[str, Any]],
    *,
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
    broke: str = "",
) -> Outcome:
    """The outcome of *drill*, from the lines that `kubernetes_load` *said*. Without its last line, `records`, every
    accepted task counts as lost."""
    ended = [each for each in said if each["what"] == "ended"]
    accepted = sum(each["what"] == "accepted" for each in said)
    records = next((each for each in said if each["what"] == "records"), None)
    return Outcome(
        drill=drill,
        accepted=accepted,
        done=sum(each["status"] == "done" for each in ended),
        by_degraded=sum(each["route"] == "degraded" and each["status"] == "done" for each in ended),
        second_attempts=sum(each["attempt"] > 1 for each in ended),
        failed=Counter(str(each["code"]) for each in ended if each["status"] != "done"),
        given_up=sum(each["what"] == "given_up" for each in said),
        lost=accepted if records is None else len(records["lost"]),
        doubled=0 if records is None else len(records["doubled"]),
        slowest_s=max((each["took_s"] for each in ended), default=0.0),
        shown=shown_in(said),
        seconds=seconds,
        notes=notes,
        broke=broke,
    )


def shown_in(said: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lanes that `warmlane status` showed as not well, and the leaders, each once and in order."""
    found: dict[str, None] = {}
    for each in said:
        if each["what"] != "status":
            continue
        for lane in each["lanes"]:
            if lane["state"] not in _WELL:
                found[f"{lane['model']} {lane['state']} {lane['detail']}".rstrip()] = None
            elif not lane["state"] and lane["route"] != "lane":
                found[f"{lane['model']} has no lane"] = None
        found[f"leader {each['leader']}"] = None
    return list(found)


def longest_pause_s(said: Sequence[Mapping[str, Any]]) -> float:
    """The longest time between two accepted requests."""
    moments = [each["at_s"] for each in said if each["what"] == "accepted"]
    return max((later - sooner for sooner, later in itertools.pairwise(moments)), default=0.0)


def faults_of(outcome: Outcome) -> list[str]:
    """Why *outcome* is not what it has to be; empty where it is, or where the drill was not done.

    1. No accepted task is lost, and none ends twice.
    2. Every request was accepted in the end, and every task was done.
    3. The cause was shown.
    """
    if outcome.skipped:
        return []
    faults = [f"{count} {word}" for word, count in (("lost", outcome.lost), ("doubled", outcome.doubled)) if count]  # 1
    if outcome.broke:
        faults.append(" ".join(outcome.broke.split()).replace("|", "/"))
    if not outcome.accepted:
        faults.append("nothing was accepted")
    if outcome.given_up:  # 2
        faults.append(f"{outcome.given_up} requests were not accepted")
    faults += [f"{count} failed with {code}" for code, count in sorted(outcome.failed.items())]
    cause = outcome.drill.cause
    if cause and not any(re.search(cause, each) for each in outcome.shown):  # 3
        faults.append(f"status did not show {cause!r}, but {list(outcome.shown)}")
    return faults


def markdown(outcomes: Sequence[Outcome], *, about: Mapping[str, str]) -> str:
    """The report: what it ran on, and each drill with what it cost."""
    lines = [
        "# Drills on Kubernetes",
        "",
        "Written by `make kubernetes`. [kubernetes.md](../kubernetes.md) says what they are.",
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in about.items()), ""]
    lines += [
        "| drill | accepted | done | degraded | second attempts | lost | doubled | slowest | measured | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        if each.skipped:
            lines.append(f"| {each.drill.name} | - | - | - | - | - | - | - | - | not done: {each.skipped} |")
            continue
        measured = ", ".join(f"{name} {value:.1f} s" for name, value in each.seconds.items())
        verdict = "; ".join(faults_of(each)) or "as it has to be"
        lines.append(
            f"| {each.drill.name} | {each.accepted} | {each.done} | {each.by_degraded} | {each.second_attempts} "
            f"| {each.lost} | {each.doubled} | {each.slowest_s:.1f} s | {measured} | {verdict} |"
        )
    lines += ["", "## What was done, and what `warmlane status` showed"]
    for each in outcomes:
        lines += ["", f"**{each.drill.name}.** {each.drill.what}"]
        lines += [f"- {note}" for note in each.notes]
        lines += [f"- `{shown}`" for shown in each.shown]
    return "\n".join(lines) + "\n"
