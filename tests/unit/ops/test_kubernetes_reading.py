"""What a cluster's objects say of lanes, as tables: in the forms that the API server, the scheduler, a kubelet and the
controllers of Kubernetes 1.36 publish."""

from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.lanes import LaneState
from ops.lanes.kubernetes.objects import LaneDeployment, Pod, deployment, pod
from ops.lanes.kubernetes.reading import LaneWord, may_replace, scales, unseen, word_on, words

NOW = datetime(2026, 11, 27, 10, 30, tzinfo=UTC)
LABELS = {
    "app.kubernetes.io/instance": "w",
    "app.kubernetes.io/component": "lane",
    "warmlane/lane": "anisora",
    "warmlane/model": "anisora",
}
NO_CARD = (
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: "
    "2 No preemption victims found for incoming pod."
)
NO_DEVICE = "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: not helpful"
QUOTA = (
    'pods "w-warmlane-lane-anisora-6d9f-x2x9k" is forbidden: exceeded quota: cards, requested: '
    "requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2"
)
RESTRICTED = 'pods "w-6d9f-x2x9k" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
PULL = 'Back-off pulling image "warmlane-worker:1": ErrImagePull: failed to resolve reference: not found'
BACK_OFF = "back-off 5m0s restarting failed container=worker pod=w-anisora-0_default(8a5c)"
TAINTED = "Taint manager: deleting due to NoExecute taint"


def a_pod(name: str = "anisora-x", **status: Any) -> Pod:
    node = status.pop("node", "node-a")
    metadata = {"name": name, "labels": LABELS, **status.pop("metadata", {})}
    return pod({"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status})


def container(state: dict[str, Any], last: dict[str, Any] | None = None, restarts: int = 0) -> dict[str, Any]:
    one = {"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": restarts, "state": state}
    return {"phase": "Running", "containerStatuses": [one | {"lastState": last or {}}]}


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    at = "2026-11-27T10:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


def ended(code: int, reason: str) -> dict[str, Any]:
    times = {"startedAt": "2026-11-27T10:00:00Z", "finishedAt": "2026-11-27T10:01:00Z"}
    return {"terminated": {"exitCode": code, "reason": reason, "containerID": "containerd://1", **times}}


ENDED_AT = datetime(2026, 11, 27, 10, 1, tzinfo=UTC)
CRASHED = {"waiting": {"reason": "CrashLoopBackOff", "message": BACK_OFF}}
LEAVES = {"deletionTimestamp": "2026-11-27T10:35:00Z", "deletionGracePeriodSeconds": 1920}
OVERDUE = {"deletionTimestamp": "2026-11-27T10:29:00Z", "deletionGracePeriodSeconds": 1920}


@pytest.mark.parametrize(
    ("found", "state", "detail", "ended_at"),
    [
        pytest.param(
            a_pod(phase="Pending", node="", conditions=[condition("PodScheduled", "False", "Unschedulable", NO_CARD)]),
            LaneState.CAPACITY_DENIED,
            NO_CARD,
            None,
            id="2-no-card",
        ),
        pytest.param(
            a_pod(
                phase="Pending", node="", conditions=[condition("PodScheduled", "False", "Unschedulable", NO_DEVICE)]
            ),
            LaneState.CAPACITY_DENIED,
            NO_DEVICE,
            None,
            id="2-no-device-by-claim",
        ),
        pytest.param(
            a_pod(**container(CRASHED, ended(137, "OOMKilled"), restarts=5)),
            LaneState.CRASH_LOOPING,
            f"CrashLoopBackOff: {BACK_OFF}; the last end: OOMKilled, exit code 137; started again 5 times",
            ENDED_AT,
            id="3-out-of-memory",
        ),
        pytest.param(
            a_pod(**container(CRASHED, ended(1, "Error"), restarts=2)),
            LaneState.CRASH_LOOPING,
            f"CrashLoopBackOff: {BACK_OFF}; the last end: Error, exit code 1; started again 2 times",
            ENDED_AT,
            id="3-an-error",
        ),
        pytest.param(
            a_pod(**container({"waiting": {"reason": "ImagePullBackOff", "message": PULL}})),
            LaneState.CAPACITY_DENIED,
            f"ImagePullBackOff: {PULL}",
            None,
            id="4-no-image",
        ),
        pytest.param(
            a_pod(**container({"waiting": {"reason": "ErrImagePull", "message": "not found"}})),
            LaneState.CAPACITY_DENIED,
            "ErrImagePull: not found",
            None,
            id="4-the-first-pull-failed",
        ),
        pytest.param(
            a_pod(
                **container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}})
            ),
            LaneState.CAPACITY_DENIED,
            'CreateContainerConfigError: secret "s" not found',
            None,
            id="4-no-secret",
        ),
        pytest.param(
            a_pod(**container({"waiting": {"reason": "ContainerCreating"}})),
            LaneState.STARTING,
            "ContainerCreating",
            None,
            id="5-being-made",
        ),
        pytest.param(
            a_pod(**container({"running": {"startedAt": "2026-11-27T10:02:00Z"}}, ended(1, "Error"), restarts=1)),
            LaneState.STARTING,
            "",
            None,
            id="5-runs-again-and-may-have-spoken",
        ),
        pytest.param(
            a_pod(**container(ended(137, "OOMKilled"))),
            LaneState.STARTING,
            "ended (OOMKilled, exit code 137)",
            ENDED_AT,
            id="5-ended-and-not-started-again-yet",
        ),
        pytest.param(a_pod(phase="Pending", node=""), LaneState.STARTING, "", None, id="5-nobody-looked-at-it-yet"),
        pytest.param(
            a_pod(
                phase="Running",
                metadata=LEAVES,
                conditions=[condition("DisruptionTarget", "True", "DeletionByTaintManager", TAINTED)],
            ),
            LaneState.UNHEALTHY,
            f"its node node-a is lost: DeletionByTaintManager: {TAINTED}",
            None,
            id="1-node-lost",
        ),
        pytest.param(
            a_pod(phase="Running", metadata=OVERDUE),
            LaneState.UNHEALTHY,
            "its node node-a has not ended it within its grace period, which was over at 10:29:00 UTC",
            None,
            id="1-nobody-ends-it",
        ),
        pytest.param(
            a_pod(phase="Pending", reason="NodeLost", metadata=LEAVES),
            LaneState.UNHEALTHY,
            "its node node-a is lost: NodeLost",
            None,
            id="1-as-older-clusters-say-it",
        ),
    ],
)
def test_word_on(found: Pod, state: LaneState, detail: str, ended_at: datetime | None) -> None:
    word = word_on(found, now=NOW)
    assert word == LaneWord(model="anisora", name="anisora-x", state=state, detail=detail, ended_at=ended_at)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(a_pod(phase="Running", metadata=LEAVES), id="told-to-go"),
        pytest.param(a_pod(phase="Failed", reason="Evicted"), id="evicted"),
        pytest.param(a_pod(phase="Succeeded"), id="over"),
    ],
)
def test_nothing_is_said_of_a_pod_that_leaves(found: Pod) -> None:
    assert word_on(found, now=NOW) is None


def a_deployment(
    replicas: int, *conditions: dict[str, Any], lane: str = "anisora", model: str = "anisora"
) -> LaneDeployment:
    labels = LABELS | {"warmlane/lane": lane, "warmlane/model": model}
    return deployment(
        {"metadata": {"name": f"w-{lane}", "labels": labels}, "spec": {"replicas": replicas}}
        | {"status": {"conditions": list(conditions)}}
    )


def reported(
    *deployments: LaneDeployment, pods: tuple[Pod, ...] = (), **given: Any
) -> list[tuple[str, LaneState, str]]:
    given = {"wanted": None, "quota": {}} | given
    return [(each.name, each.state, each.detail) for each in words(deployments, pods, now=NOW, **given)]


def test_a_replica_without_a_pod_is_denied_in_the_clusters_words() -> None:
    runs = a_pod(**container({"running": {}}))
    failed = condition("ReplicaFailure", "True", "FailedCreate", QUOTA)
    assert reported(a_deployment(2, failed), pods=(runs,)) == [
        ("anisora-x", LaneState.STARTING, ""),
        ("w-anisora-0", LaneState.QUOTA_DENIED, f"FailedCreate: {QUOTA}"),
    ]
    other = condition("ReplicaFailure", "True", "FailedCreate", RESTRICTED)
    assert reported(a_deployment(1, other)) == [
        ("w-anisora-0", LaneState.CAPACITY_DENIED, f"FailedCreate: {RESTRICTED}"),
    ]
    over = condition("ReplicaFailure", "False", "", "")
    assert reported(a_deployment(1, over)) == [
        ("w-anisora-0", LaneState.STARTING, "the cluster has not made its pod yet"),
    ]


def test_a_pod_that_leaves_does_not_count_as_a_replica() -> None:
    failed = condition("ReplicaFailure", "True", "FailedCreate", QUOTA)
    leaving = a_pod(phase="Running", metadata=LEAVES)
    assert reported(a_deployment(1, failed), pods=(leaving,)) == [
        ("w-anisora-0", LaneState.QUOTA_DENIED, f"FailedCreate: {QUOTA}")
    ]


def test_pods_of_another_release_are_not_counted() -> None:
    other = a_pod(metadata={"labels": LABELS | {"app.kubernetes.io/instance": "other"}})
    assert [name for name, _, _ in reported(a_deployment(1), pods=(other,))] == ["w-anisora-0"]


def test_wanted_lanes_beyond_the_quota_file_and_models_without_a_deployment() -> None:
    assert reported(a_deployment(1), pods=(a_pod(),), wanted={"anisora": 3, "phr00t": 1}, quota={"anisora": 1}) == [
        ("anisora-x", LaneState.STARTING, ""),
        ("w-anisora-1", LaneState.QUOTA_DENIED, "the quota file allows 1 of anisora"),
        ("w-anisora-2", LaneState.QUOTA_DENIED, "the quota file allows 1 of anisora"),
        (
            "phr00t-0",
            LaneState.CAPACITY_DENIED,
            "no Deployment here has the label warmlane/model=phr00t; the chart makes one for each of `lanes`",
        ),
    ]


@pytest.mark.parametrize(
    ("replicas", "wanted", "quota", "expected"),
    [
        pytest.param((1, 1), None, {}, {}, id="1-not-ours"),
        pytest.param((1, 1), {"anisora": 2}, {}, {}, id="2-as-wanted"),
        pytest.param((1, 1), {"anisora": 4}, {}, {"w-a": 3}, id="3-the-first-gets-more"),
        pytest.param((2, 1), {"anisora": 2}, {}, {"w-b": 0}, id="3-the-last-gives"),
        pytest.param((2, 2), {"anisora": 1}, {}, {"w-b": 0, "w-a": 1}, id="3-and-then-the-one-before"),
        pytest.param((2, 2), {"anisora": 4}, {"anisora": 3}, {"w-b": 1}, id="2-the-quota"),
        pytest.param((0, 0), {"anisora": 2}, {"anisora": 0}, {}, id="2-the-quota-allows-none"),
        pytest.param((1, 1), {"phr00t": 1}, {}, {}, id="3-no-deployment"),
    ],
)
def test_scales(
    replicas: tuple[int, int], wanted: dict[str, int] | None, quota: dict[str, int], expected: dict[str, int]
) -> None:
    found = [a_deployment(count, lane=lane) for lane, count in zip("ba", reversed(replicas), strict=True)]
    assert scales(found, wanted=wanted, quota=quota) == expected


def test_a_lanes_own_word_is_replaced_only_when_its_process_is_gone() -> None:
    def word(state: LaneState, ended_at: datetime | None = None) -> LaneWord:
        return LaneWord(model="anisora", name="anisora-x", state=state, ended_at=ended_at)

    crashed, lost = word(LaneState.CRASH_LOOPING, ENDED_AT), word(LaneState.UNHEALTHY)
    before, after = datetime(2026, 11, 27, 10, tzinfo=UTC), NOW
    assert may_replace(crashed, began_at=before, is_silent=False)
    assert not may_replace(crashed, began_at=after, is_silent=True), "the next process speaks already"
    assert not may_replace(word(LaneState.STARTING), began_at=before, is_silent=True)
    assert may_replace(lost, began_at=before, is_silent=True)
    assert not may_replace(lost, began_at=before, is_silent=False), "the lane is heard: its node is cut off from others"


def test_what_was_known_last_says_so() -> None:
    word = LaneWord(model="anisora", name="a", state=LaneState.CAPACITY_DENIED, detail="no card")
    assert unseen(word, why="refused").detail == (
        "no card; last known state, since the cluster cannot be seen: refused"
    )
