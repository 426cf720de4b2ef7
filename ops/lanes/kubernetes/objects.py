"""The parts of a Deployment and of a pod that Warmlane reads, in the form of the API (`apps/v1`, `v1`)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

MODEL_LABEL: Final = "warmlane/model"
LANE_LABEL: Final = "warmlane/lane"
RELEASE_LABEL: Final = "app.kubernetes.io/instance"
LABELS: Final[Mapping[str, str]] = {"app.kubernetes.io/component": "lane"}
"""The label that finds the Deployments of lanes and their pods, beside the labels above."""


# A release and its entry of `lanes`: what a Deployment and its pods have in common.
Entry: TypeAlias = tuple[str | None, str | None]


class Metadata(Struct, frozen=True, rename="camel", kw_only=True):
    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: datetime | None = None
    """When the pod has to be gone, its grace period included."""


class Condition(Struct, frozen=True, rename="camel", kw_only=True):
    type: str
    status: str
    reason: str | None = None
    message: str | None = None


class ContainerWaiting(Struct, frozen=True, rename="camel", kw_only=True):
    reason: str | None = None
    message: str | None = None


class Terminated(Struct, frozen=True, rename="camel", kw_only=True):
    exit_code: int
    reason: str | None = None
    message: str | None = None
    finished_at: datetime | None = None


class ContainerState(Struct, frozen=True, rename="camel", kw_only=True):
    waiting: ContainerWaiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(Struct, frozen=True, rename="camel", kw_only=True):
    name: str
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodSpec(Struct, frozen=True, rename="camel", kw_only=True):
    node_name: str | None = None


class PodStatus(Struct, frozen=True, rename="camel", kw_only=True):
    phase: str | None = None
    reason: str | None = None
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []


class Pod(Struct, frozen=True, rename="camel", kw_only=True):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def model(self) -> str:
        """The model of its lane; empty where the label is missing."""
        return self.metadata.labels.get(MODEL_LABEL, "")

    @property
    def entry(self) -> Entry:
        """The `entry` of its Deployment."""
        return _entry(self.metadata)

    @property
    def is_leaving(self) -> bool:
        """Whether it is being deleted, or has ended."""
        return self.metadata.deletion_timestamp is not None or self.status.phase in {"Succeeded", "Failed"}

    @property
    def restarts(self) -> int:
        """How often its containers ended and were restarted."""
        return sum(each.restart_count for each in self.status.container_statuses)


class DeploymentSpec(Struct, frozen=True, rename="camel", kw_only=True):
    replicas: int = 1


class DeploymentStatus(Struct, frozen=True, rename="camel", kw_only=True):
    conditions: list[Condition] = []


class LaneDeployment(Struct, frozen=True, rename="camel", kw_only=True):
    metadata: Metadata
    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()

    @property
    def entry(self) -> Entry:
        """The `entry` that its pods have, too."""
        return _entry(self.metadata)


def _entry(metadata: Metadata) -> Entry:
    return metadata.labels.get(RELEASE_LABEL), metadata.labels.get(LANE_LABEL)


def deployment(found: Mapping[str, Any]) -> LaneDeployment:
    """*found* as a Deployment. Raises msgspec.ValidationError where it is none."""
    return msgspec.convert(found, LaneDeployment)


def pod(found: Mapping[str, Any]) -> Pod:
    """*found* as a pod. Raises msgspec.ValidationError where it is none."""
    return msgspec.convert(found, Pod)
