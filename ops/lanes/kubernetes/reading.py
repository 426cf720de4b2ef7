"""What a cluster's objects say of lanes, and how many replicas each Deployment should have. Pure: no clock, no I/O, no
logging."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from contracts.lanes import LaneState
from ops.lanes.kubernetes.objects import (
    MODEL_LABEL,
    Condition,
    LaneDeployment,
    Pod,
    Terminated,
)

WORDS_MAX_CHARS: Final = 500
CRASHED: Final = "CrashLoopBackOff"
# Why a kubelet cannot make a container: its image, or what else it is made of, is missing.
CANNOT_RUN: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
# The reasons that Kubernetes gives when it disrupts a pod because its node does not answer.
NODE_GONE: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


class LaneWord(Struct, frozen=True, kw_only=True):
    """What the cluster says of one lane.

    *name* is the pod's name, which is also the lane's own. Where there is no pod, it is the Deployment's name and a
    number. The process that ran before *ended_at* is gone; None: no end is known.
    """

    model: str
    name: str
    state: LaneState
    detail: str = ""
    ended_at: datetime | None = None


def words(
    deployments: Sequence[LaneDeployment],
    pods: Sequence[Pod],
    *,
    wanted: Mapping[str, int] | None,
    quota: Mapping[str, int],
    now: datetime,
) -> list[LaneWord]:
    """A word on every lane that exists or should exist (FR-021 a). *wanted* has the number of lanes of each model;
    None: as many as the Deployments have replicas. *quota* limits models; others are not limited.

    1. Each pod of a Deployment: see `word_on`.
    2. Replicas that have no pod: `quota_denied` where a quota of the namespace was exceeded, `capacity_denied` where
       the cluster does not make the pod for another reason, and `starting` otherwise.
    3. Wanted lanes beyond the operator's quota: `quota_denied`.
    4. Wanted lanes of a model that has no Deployment: `capacity_denied`.
    """
    found: list[LaneWord] = []
    for each in sorted(deployments, key=_name):
        own = [pod for pod in pods if pod.entry == each.entry]
        said = [word for pod in sorted(own, key=_name) if (word := word_on(pod, now=now)) is not None]
        found += said  # 1
        alive = sum(not pod.is_leaving for pod in own)
        found += _missing(each, each.spec.replicas - alive)  # 2
    for model, count in (wanted or {}).items():
        of_model = sorted((each for each in deployments if _model(each) == model), key=_name)
        limit = quota.get(model, count)
        text = f"the quota file allows {limit} of {model}"
        if not of_model:
            text = f"no Deployment here has the label {MODEL_LABEL}={model}; the chart makes one for each of `lanes`"
            found += [_denied(model, f"{model}-{number}", text) for number in range(count)]  # 4
        else:
            first = of_model[0]
            start = max(first.spec.replicas, 0)
            for number in range(start, start + max(count - limit, 0)):  # 3
                name = f"{first.metadata.name}-{number}"
                found.append(LaneWord(model=model, name=name, state=LaneState.QUOTA_DENIED, detail=text))
    return found


def word_on(pod: Pod, *, now: datetime) -> LaneWord | None:
    """What the cluster says of *pod*, in its own words; None for a pod that leaves as it should, or has ended and is
    replaced.

    1. Its node is lost, or does not end it in time: `unhealthy`.
    2. It cannot be scheduled: `capacity_denied`. The cluster reports taken cards alike for counts and for claims.
    3. Its container ended again and again: `crash_looping`, with the last end.
    4. Its image cannot be pulled, or its container cannot be made: `capacity_denied`.
    5. Otherwise `starting`, which the lane's own report replaces.
    """

    def word(state: LaneState, detail: str = "", ended: Terminated | None = None) -> LaneWord:
        at = None if ended is None else ended.finished_at
        return LaneWord(
            model=pod.model,
            name=pod.metadata.name,
            state=state,
            detail=_short(detail),
            ended_at=at,
        )

    if (lost := _lost(pod, now)) is not None:  # 1
        return word(LaneState.UNHEALTHY, lost)
    if pod.is_leaving:
        return None
    placed = _condition(pod.status.conditions, "PodScheduled")
    if placed is not None and placed.status == "False":
        if placed.reason == "Unschedulable":  # 2
            return word(LaneState.CAPACITY_DENIED, placed.message or "Unschedulable")
        return word(LaneState.STARTING, _joined(placed.reason, placed.message))
    for container in pod.status.container_statuses:
        waiting, ended = container.state.waiting, container.state.terminated or container.last_state.terminated
        if waiting is not None and waiting.reason == CRASHED:  # 3
            said = _joined(waiting.reason, waiting.message)
            how = f"; the last end: {_how(ended)}" if ended is not None else ""
            times = f"; started again {container.restart_count} times"
            return word(LaneState.CRASH_LOOPING, said + how + times, ended)
        if waiting is not None and waiting.reason in CANNOT_RUN:  # 4
            return word(LaneState.CAPACITY_DENIED, _joined(waiting.reason, waiting.message), ended)
        if container.state.terminated is not None:  # 5
            return word(LaneState.STARTING, f"ended ({_how(container.state.terminated)})", ended)
        if waiting is not None:
            return word(LaneState.STARTING, _joined(waiting.reason, waiting.message), ended)
    return word(LaneState.STARTING)


def scales(
    deployments: Sequence[LaneDeployment], *, wanted: Mapping[str, int] | None, quota: Mapping[str, int]
) -> dict[str, int]:
    """The replicas that Deployments should have, by name, where they have another number.

    1. Without *wanted*, nothing changes: Helm or an autoscaler sets the replicas.
    2. A model gets as many lanes as are wanted, but no more than its quota allows.
    3. Missing replicas go to the first of its Deployments by name; surplus ones are taken from the last.
    """
    changed: dict[str, int] = {}
    for model, count in (wanted or {}).items():  # 1
        of_model = sorted((each for each in deployments if _model(each) == model), key=_name)
        more = min(count, quota.get(model, count)) - sum(each.spec.replicas for each in of_model)  # 2
        if more > 0 and of_model:  # 3
            changed[of_model[0].metadata.name] = of_model[0].spec.replicas + more
        for each in reversed(of_model):
            fewer = min(-more, each.spec.replicas)
            if fewer > 0:
                changed[each.metadata.name] = each.spec.replicas - fewer
                more += fewer
    return changed


def may_replace(word: LaneWord, *, began_at: datetime, is_silent: bool) -> bool:
    """Whether *word* may replace what a lane's own process wrote: only if that process has ended, or if its node is
    lost with it. The process began at *began_at*; *is_silent*: for so long that it counts as unhealthy."""
    if word.ended_at is not None and began_at <= word.ended_at:
        return True
    return is_silent and word.state is LaneState.UNHEALTHY


def unseen(word: LaneWord, *, why: str) -> LaneWord:
    """*word* as it is reported while the cluster cannot be seen."""
    text = f"{word.detail}; last known state, since the cluster cannot be seen: {why}".removeprefix("; ")
    return msgspec.structs.replace(word, detail=text)


def _missing(deployment: LaneDeployment, count: int) -> Iterator[LaneWord]:
    failure = _condition(deployment.status.conditions, "ReplicaFailure")
    state, detail = LaneState.STARTING, "the cluster has not made its pod yet"
    if failure is not None and failure.status == "True":
        detail = _joined(failure.reason, failure.message)
        state = LaneState.QUOTA_DENIED if "exceeded quota" in detail else LaneState.CAPACITY_DENIED
    for number in range(count):
        name = f"{deployment.metadata.name}-{number}"
        yield LaneWord(model=_model(deployment), name=name, state=state, detail=_short(detail))


def _denied(model: str, name: str, text: str) -> LaneWord:
    return LaneWord(model=model, name=name, state=LaneState.CAPACITY_DENIED, detail=text)


def _lost(pod: Pod, now: datetime) -> str | None:
    node, leaves_by = pod.spec.node_name, pod.metadata.deletion_timestamp
    disrupted = _condition(pod.status.conditions, "DisruptionTarget")
    if node is None:
        return None
    if disrupted is not None and disrupted.status == "True" and disrupted.reason in NODE_GONE:
        return f"its node {node} is lost: {_joined(disrupted.reason, disrupted.message)}"
    if pod.status.reason == "NodeLost":
        return f"its node {node} is lost: NodeLost"
    if leaves_by is not None and leaves_by < now and pod.status.phase not in {"Succeeded", "Failed"}:
        return f"its node {node} has not ended it within its grace period, which was over at {leaves_by:%H:%M:%S} UTC"
    return None


def _how(ended: Terminated) -> str:
    return f"{_joined(ended.reason, ended.message)}, exit code {ended.exit_code}".removeprefix(", ")


def _condition(conditions: Sequence[Condition], kind: str) -> Condition | None:
    return next((each for each in conditions if each.type == kind), None)


def _model(deployment: LaneDeployment) -> str:
    return deployment.metadata.labels.get(MODEL_LABEL, "")


def _name(of: LaneDeployment | Pod) -> str:
    return of.metadata.name


def _joined(reason: str | None, message: str | None) -> str:
    return ": ".join(each.strip() for each in (reason, message) if each)


def _short(text: str) -> str:
    return text if len(text) <= WORDS_MAX_CHARS else text[: WORDS_MAX_CHARS - 1] + "…"
