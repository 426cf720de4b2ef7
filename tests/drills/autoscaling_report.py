"""What `make autoscaling` measured, and how that is judged. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from msgspec import Struct

# The states of a lane that is leaving.
GOES: Final = frozenset({"draining"})


class LanePod(Struct, frozen=True, kw_only=True):
    """A lane's pod, with the times that the cluster recorded; None: that did not happen."""

    name: str
    made_at: datetime
    ready_at: datetime | None = None
    told_to_go_at: datetime | None = None


class Look(Struct, frozen=True, kw_only=True):
    """What the cluster showed at *at*: how many lanes the autoscaler wanted and how much demand it was told of for each
    lane, and how many lanes were ready, and not asked to leave."""

    at: datetime
    wanted: int
    demand_for_each: float | None
    ready: int
    staying: int


class Seen(Struct, frozen=True, kw_only=True):
    """One run. The load rose at *rose_at* and fell at *fell_at*."""

    rose_at: datetime
    fell_at: datetime
    looks: Sequence[Look]
    pods: Sequence[LanePod]
    said: Sequence[Mapping[str, Any]]
    most: int


class Verdict(Struct, frozen=True, kw_only=True):
    """The outcome of a run."""

    figures: Mapping[str, str]
    faults: Sequence[str]


def merged(pods: Mapping[str, LanePod], found: Sequence[Mapping[str, Any]]) -> dict[str, LanePod]:
    """*pods* with what the API reports of the pods in *found*: the first time of each kind stays."""
    after = dict(pods)
    for each in found:
        metadata = each["metadata"]
        before = after.get(metadata["name"])
        conditions = {one["type"]: one for one in each.get("status", {}).get("conditions", [])}
        ready = conditions.get("Ready", {})
        leaves = metadata.get("deletionTimestamp")
        gone_at = None
        if leaves is not None:  # the grace period is counted in
            gone_at = moment(leaves) - timedelta(seconds=metadata.get("deletionGracePeriodSeconds", 0))
        after[metadata["name"]] = LanePod(
            name=metadata["name"],
            made_at=moment(metadata["creationTimestamp"]),
            ready_at=(before and before.ready_at)
            or (moment(ready["lastTransitionTime"]) if ready.get("status") == "True" else None),
            told_to_go_at=(before and before.told_to_go_at) or gone_at,
        )
    return after


def moment(text: str) -> datetime:
    """A moment in the form of the API."""
    return datetime.fromisoformat(text)


def last_state(lane: str, said: Sequence[Mapping[str, Any]]) -> str:
    """The last state of *lane* before it was leaving, as `warmlane status` showed it; empty where it showed none."""
    states = [
        each["state"]
        for line in said
        if line["what"] == "status"
        for each in line["lanes"]
        if each["worker"] == lane and each["state"] not in GOES
    ]
    return states[-1] if states else ""


def judge(seen: Seen) -> Verdict:
    """Judges a run.

    1. Lanes follow: as many as are allowed while the load is high, and one in the end.
    2. No accepted task is lost, ends twice, fails or was begun twice: no run was interrupted.
    """
    ended = [each for each in seen.said if each["what"] == "ended"]
    records = [each for each in seen.said if each["what"] == "records"]
    accepted = sum(each["what"] == "accepted" for each in seen.said)
    added = sorted(
        (pod for pod in seen.pods if pod.made_at >= seen.rose_at and pod.ready_at), key=lambda pod: pod.made_at
    )
    gone = sorted((pod for pod in seen.pods if pod.told_to_go_at), key=lambda pod: str(pod.told_to_go_at))
    states = [last_state(pod.name, seen.said) for pod in gone]
    lost, doubled = (sum(len(each[what]) for each in records) for what in ("lost", "doubled"))
    again = sum(each["attempt"] > 1 for each in ended)
    failed = Counter(str(each["code"]) for each in ended if each["status"] != "done")

    faults = []
    most, last = max((look.ready for look in seen.looks), default=0), seen.looks[-1] if seen.looks else None
    if most < seen.most:  # 1
        faults.append(f"{most} lanes were warm at most, instead of {seen.most}")
    if last is None or (last.wanted, last.staying) != (1, 1):
        faults.append(f"in the end it was {last and last.staying} lanes instead of 1")
    if not accepted or len(records) < 2:  # 2
        faults.append("a load had no last word")
    faults += [f"{count} {word}" for word, count in (("lost", lost), ("doubled", doubled)) if count]
    faults += [f"{count} failed with {code}" for code, count in sorted(failed.items())]
    if again:
        faults.append(f"{again} tasks were begun twice: a run was interrupted")

    figures = {
        "tasks accepted, done": f"{accepted}, {sum(each['status'] == 'done' for each in ended)}",
        "of them by the degraded worker": str(sum(each["route"] == "degraded" for each in ended)),
        "lost, doubled, begun twice": f"{lost}, {doubled}, {again}",
        "slowest, from request to video": f"{max((each['took_s'] for each in ended), default=0.0):.1f} s",
    }
    for number, pod in enumerate(added, start=2):
        assert pod.ready_at is not None
        made_s = (pod.made_at - seen.rose_at).total_seconds()
        warm_s = (pod.ready_at - pod.made_at).total_seconds()
        figures[f"lane {number}"] = f"made {made_s:.0f} s after the load rose, warm {warm_s:.0f} s later"
    for pod, state in zip(gone, states, strict=True):
        assert pod.told_to_go_at is not None
        after_s = (pod.told_to_go_at - seen.fell_at).total_seconds()
        figures[f"`{pod.name}` asked to leave"] = f"{after_s:.0f} s after the load fell, {state or 'silent'} before"
    figures["busy when asked to leave"] = str(states.count("busy"))
    return Verdict(figures=figures, faults=faults)


def changes(looks: Sequence[Look]) -> list[Look]:
    """The looks at which something had changed."""
    found: list[Look] = []
    for look in looks:
        if not found or _counts(look) != _counts(found[-1]):
            found.append(look)
    return found


def _counts(look: Look) -> tuple[object, ...]:
    return look.wanted, look.demand_for_each, look.ready, look.staying


def markdown(seen: Seen, verdict: Verdict, *, about: Mapping[str, str]) -> str:
    """The report."""
    lines = [
        "# Lanes that follow the demand, on Kubernetes",
        "",
        "Written by `make autoscaling`. [kubernetes.md](../kubernetes.md#the-drills) says what it is.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in about.items()),
        *(f"| {name} | {value} |" for name, value in verdict.figures.items()),
        f"| verdict | {'; '.join(verdict.faults) or 'as it has to be'} |",
        "",
        "## What the cluster showed",
        "",
        "| seconds after the load rose | demand for each lane, as reported by KEDA | lanes wanted | lanes "
        "| of them warm |",
        "|---|---|---|---|---|",
    ]
    for look in changes(seen.looks):
        after_s = (look.at - seen.rose_at).total_seconds()
        each = "-" if look.demand_for_each is None else f"{look.demand_for_each:g}"
        lines.append(f"| {after_s:.0f} | {each} | {look.wanted} | {look.staying} | {look.ready} |")
    fell_s = (seen.fell_at - seen.rose_at).total_seconds()
    lines += ["", f"The load fell {fell_s:.0f} s after it rose."]
    return "\n".join(lines) + "\n"
