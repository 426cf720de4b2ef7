"""What is known of a namespace's lanes: Deployments and pods, listed once and watched from there on."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import httpx2
import structlog
from lightkube import AsyncClient
from lightkube.resources.apps_v1 import Deployment as ApiDeployment
from lightkube.resources.core_v1 import Pod as ApiPod

from ops.lanes.kubernetes.objects import LABELS, MODEL_LABEL, RELEASE_LABEL, LaneDeployment, Pod, deployment, pod
from ops.telemetry.seldom import Seldom

# A watch is opened anew this often, from a new list: a connection that died silently is not believed for longer.
WATCH_S: Final = 60.0
# The pauses between tries while the API server does not answer, or refuses.
RETRY_FIRST_S: Final = 0.25
RETRY_MOST_S: Final = 10.0
# The longest pause that the supervisor takes from a Retry-After.
RETRY_AFTER_MOST_S: Final = 60.0
GONE: Final = 410
NOT_FOUND: Final = 404

T = TypeVar("T", LaneDeployment, Pod)
# What a call raises when the server is away, refuses, or gives an answer that cannot be read.
FAILURES: Final = (httpx2.HTTPError, OSError, KeyError, ValueError)

log = structlog.get_logger("cluster")


class KnownObjects(Generic[T]):
    """The last known objects of one kind. They stay while the server cannot be asked; *blind* then says why."""

    def __init__(self, resource: Any, read: Callable[[Any], T]) -> None:
        self.resource = resource
        self._read: Callable[[Any], T] = read
        self.objects: dict[str, T] = {}
        self.blind = "the API server has not answered yet"
        self.was_seen = False

    def all_are(self, objects: Sequence[Any]) -> None:
        self.objects = {each.metadata.name: each for each in map(self._of, objects)}
        self.blind, self.was_seen = "", True

    def changed(self, event: str, found: Any) -> None:
        each = self._of(found)
        if event == "DELETED":
            self.objects.pop(each.metadata.name, None)
        else:
            self.objects[each.metadata.name] = each

    def _of(self, found: Any) -> T:
        return self._read(found.to_dict())


class Cluster:
    """The lanes of one namespace. `follow` keeps what is known of them, and calls *on_change* after every change."""

    def __init__(self, client: AsyncClient, *, release: str | None, on_change: Callable[[], None]) -> None:
        """*release* is the Helm release of the lanes; None: any release in the namespace of *client*."""
        self._client, self._on_change = client, on_change
        self._labels: dict[str, Any] = {**LABELS, MODEL_LABEL: None}
        if release is not None:
            self._labels[RELEASE_LABEL] = release
        self.deployments = KnownObjects(ApiDeployment, deployment)
        self.pods = KnownObjects(ApiPod, pod)
        self._seldom = Seldom()

    @property
    def was_seen(self) -> bool:
        """Whether anything is known."""
        return self.deployments.was_seen and self.pods.was_seen

    @property
    def blind(self) -> str:
        """Why the known objects may be out of date; empty where they are not."""
        return self.deployments.blind or self.pods.blind

    async def follow(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self.deployments))
            group.create_task(self._follow(self.pods))

    async def scale(self, name: str, replicas: int) -> None:
        """Sets the replicas of the Deployment *name*, and nothing else of it. It only logs a refusal: the supervisor
        asks again."""
        try:
            await self._client.patch(ApiDeployment.Scale, name, {"spec": {"replicas": replicas}})
        except FAILURES as error:
            log.warning("not_scaled", deployment=name, replicas=replicas, error=_said(error))
            return
        log.info("scaled", deployment=name, replicas=replicas)

    async def annotate(self, pod_name: str, annotation: str, value: str) -> float | None:
        """Sets one annotation of a pod, and nothing else of it. Returns None when that is done, or the pod is gone by
        now. Otherwise logs the refusal, and returns after how many seconds to ask again."""
        change = {"metadata": {"annotations": {annotation: value}}}
        try:
            found = await self._client.patch(ApiPod, pod_name, change)
        except FAILURES as error:
            if _status(error) == NOT_FOUND:
                return None
            self._seldom.log(log.warning, "not_annotated", pod=pod_name, annotation=annotation, error=_said(error))
            return _retry_after_s(error) or RETRY_MOST_S
        if pod_name in self.pods.objects:  # the watch may have seen it go meanwhile
            self.pods.changed("MODIFIED", found)
        log.debug("annotated", pod=pod_name, annotation=annotation, value=value)
        return None

    async def _follow(self, known: KnownObjects[T]) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            began_s = time.monotonic()
            try:
                await self._list_and_watch(known)
                wait_s = RETRY_FIRST_S
                continue
            except FAILURES as error:
                if _status(error) == GONE:  # the server has forgotten where the watch began: list again
                    log.info("relisted", kind=known.resource.__name__, error=_said(error))
                    if time.monotonic() - began_s > RETRY_FIRST_S:
                        continue
                else:
                    if not known.blind or not known.was_seen:
                        log.warning("cluster_not_seen", kind=known.resource.__name__, error=_said(error))
                    known.blind = _said(error)
                    self._on_change()
                asked_s = _retry_after_s(error)
            await asyncio.sleep(wait_s if asked_s is None else asked_s)
            wait_s = min(2 * wait_s, RETRY_MOST_S)

    async def _list_and_watch(self, known: KnownObjects[T]) -> None:
        listed = self._client.list(known.resource, labels=self._labels)
        objects = [each async for each in listed]
        was_blind = known.blind
        known.all_are(objects)
        if was_blind:
            log.info("cluster_seen", kind=known.resource.__name__, objects=len(objects))
        self._on_change()
        try:
            async with asyncio.timeout(WATCH_S):
                async for event, found in self._client.watch(
                    known.resource,
                    labels=self._labels,
                    resource_version=listed.resourceVersion,
                    server_timeout=int(WATCH_S),
                ):
                    known.changed(event, found)
                    self._on_change()
        except TimeoutError:
            return


def _status(error: BaseException) -> int | None:
    if not isinstance(error, httpx2.HTTPStatusError):
        return None
    status = getattr(getattr(error, "status", None), "code", None)
    return status if status is not None else getattr(getattr(error, "response", None), "status_code", None)


def _retry_after_s(error: BaseException) -> float | None:
    """The pause that the server asks for."""
    response = getattr(error, "response", None)
    try:
        asked_s = float(response.headers["Retry-After"]) if response is not None else None
    except (KeyError, ValueError):
        return None
    return None if asked_s is None else min(max(asked_s, RETRY_FIRST_S), RETRY_AFTER_MOST_S)


def _said(error: BaseException) -> str:
    status = _status(error)
    text = str(error).partition("\n")[0] or type(error).__name__
    return text if status is None else f"{status}: {text}"
