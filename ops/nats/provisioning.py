"""Makes the server hold what `contracts/topology.py` says, and reports where it differs."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import nats.js.errors
from msgspec import Struct
from nats.js.api import (
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from contracts.settings import Catalog
from contracts.topology import (
    DEGRADED,
    LANES,
    LEADER,
    SLOTS,
    TASKS,
    BucketSpec,
    StreamSpec,
    Topology,
    bucket_stream,
    lane_stream,
    topology,
)
from ops.nats.errors import translated
from ops.nats.link import NatsLink
from ops.nats.pull import consumer_config

# The settings that are compared. Provisioning leaves alone what an operator may have set for reasons of their own, and
# what the server fills in.
_STREAM_FIELDS: Final = [
    "description",
    "subjects",
    "retention",
    "discard",
    "storage",
    "max_msgs",
    "max_age",
    "duplicate_window",
    "max_msgs_per_subject",
    "allow_msg_ttl",
    "allow_rollup_hdrs",
    "deny_delete",
    "allow_direct",
    "subject_delete_marker_ttl",
]
# A limit on one of these streams would lose records. A work queue is different: the operator may want less than we do.
_RECORD_FIELDS: Final = [*_STREAM_FIELDS, "max_bytes", "max_msg_size"]
_NOT_A_CLUSTER: Final = 10074
_CONSUMER_FIELDS: Final = ["description", "filter_subject", "ack_policy", "ack_wait", "max_deliver", "max_ack_pending"]


class Difference(Struct, frozen=True):
    """One setting that is not as it should be; *have* is None where the thing is missing altogether."""

    name: str
    field: str
    have: Any
    want: Any

    def __str__(self) -> str:
        if self.field == "":
            return f"{self.name}: missing"
        return f"{self.name}: {self.field} is {self.have!r}, should be {self.want!r}"


class ProvisioningRefused(Exception):
    """The server cannot hold what is wanted. The text is the server's."""


class NotProvisioned(Exception):
    """The server lacks streams or buckets, or they differ. The text says what to run."""


class NoKeys(Exception):
    """Other machines could call the gateway, and there is no API key by which to distinguish callers."""

    def __init__(self) -> None:
        super().__init__(
            "no API key is in force, and without one only this machine may be served. Make one with "
            "`warmlane keys add CALLER --scope submit --scope read` while the nats-server runs (`warmlane up` without "
            "--host runs one; in compose: `docker compose run --rm admin keys add ...`), then start this again"
        )


def wanted(catalog: Catalog, *, keep_s: float, replicas: int | None = None) -> Topology:
    """The topology for *catalog*, with finished tasks kept for *keep_s*, on *replicas* servers each."""
    return topology(
        tuple(catalog.models), lane_queue_max_msgs=catalog.lane_queue_max_msgs, keep_s=keep_s, replicas=replicas
    )


async def differences(link: NatsLink, want: Topology) -> list[Difference]:
    """What the server lacks or has otherwise. Changes nothing. Raises TransportUnavailable."""
    return [difference async for difference, _ in _compare(link, want)]


async def provision(link: NatsLink, want: Topology) -> list[Difference]:
    """Makes the server match *want* and returns what was changed. Safe to run again, and by several at once.

    Raises ProvisioningRefused when the server cannot hold *want*, TransportUnavailable when it does not answer.
    """
    changed = []
    async for difference, mend in _compare(link, want):
        await _mend(difference, mend)
        changed.append(difference)
    return changed


async def _mend(difference: Difference, mend: "_Mend") -> None:
    try:
        with translated(difference.name):
            try:
                await mend()
            except nats.js.errors.ServerError as error:
                if error.err_code == _NOT_A_CLUSTER:
                    raise ProvisioningRefused(f"{difference.name}: {error.description}") from error
                raise
    except nats.js.errors.APIError as error:
        raise ProvisioningRefused(f"{difference.name}: {error.description}") from error


async def require_provisioned(link: NatsLink, want: Topology) -> None:
    """Raises NotProvisioned when a stream, consumer or bucket is missing. One that differs is the operator's choice."""
    missing = [difference for difference in await differences(link, want) if difference.field == ""]
    if missing:
        names = ", ".join(difference.name for difference in missing)
        raise NotProvisioned(f"the server lacks {names}; run `warmlane provision`")


async def require_lane(link: NatsLink, model: str) -> None:
    """Raises NotProvisioned when there is no queue for lanes of *model*, or no bucket for what they report."""
    await _require(link, lane_stream(model), bucket_stream(LANES))


async def require_degraded(link: NatsLink) -> None:
    """Raises NotProvisioned when the degraded queue is missing, or the bucket of its leader."""
    await _require(link, DEGRADED, bucket_stream(LEADER))


async def _require(link: NatsLink, *streams: str) -> None:
    for name in (*streams, bucket_stream(SLOTS), bucket_stream(TASKS)):
        if not await link.streams.exists(name):
            raise NotProvisioned(f"the server lacks {name}; run `warmlane provision`")


_Mend = Callable[[], Awaitable[object]]


async def _compare(link: NatsLink, want: Topology) -> AsyncIterator[tuple[Difference, _Mend]]:
    manager = link.streams.manager
    specs: list[StreamSpec | BucketSpec] = [*want.streams, *want.buckets]
    work_queues = {spec.name for spec in want.streams}
    for spec in specs:
        config = _stream_config(spec).evolve(num_replicas=want.replicas)
        fields = _STREAM_FIELDS if spec.name in work_queues else _RECORD_FIELDS
        # unless *want* names a number of replicas, the number is the operator's choice, as is the placement
        fields = fields if want.replicas is None else [*fields, "num_replicas"]
        name = str(config.name)
        try:
            with translated(name):
                have = (await manager.stream_info(name)).config
        except NotFoundError:
            yield Difference(name, "", None, None), partial(manager.add_stream, config)
        else:
            if have.description:  # the operator's own words, or those of another version
                fields = [field for field in fields if field != "description"]
            mended = have.evolve(**{field: getattr(config, field) for field in fields})
            for difference in _differing(name, fields, have, config):
                yield difference, partial(manager.update_stream, mended)
        for consumer in spec.consumers if isinstance(spec, StreamSpec) else ():
            wanted_consumer = consumer_config(consumer)
            label = f"{name}/{consumer.name}"
            mend = partial(manager.add_consumer, name, wanted_consumer)
            try:
                with translated(label):
                    present = (await manager.consumer_info(name, consumer.name)).config
            except NotFoundError:
                yield Difference(label, "", None, None), mend
            else:
                for difference in _differing(label, _CONSUMER_FIELDS, present, wanted_consumer):
                    yield difference, mend


def _differing(name: str, names: list[str], have: Any, want: Any) -> Iterator[Difference]:
    for field in names:
        ours, theirs = getattr(want, field), getattr(have, field)
        if field == "description" and theirs:
            continue  # the operator's own words
        if (ours or None) != (theirs or None):
            yield Difference(name, field, theirs, ours)


def _stream_config(spec: StreamSpec | BucketSpec) -> StreamConfig:
    if isinstance(spec, BucketSpec):
        return StreamConfig(
            name=bucket_stream(spec.name),
            description=spec.description,
            subjects=[f"$KV.{spec.name}.>"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            max_msgs=-1,
            max_bytes=-1,
            max_msg_size=-1,
            max_msgs_per_subject=spec.history,
            max_age=spec.ttl_s,
            duplicate_window=min(120.0, spec.ttl_s) if spec.ttl_s else 120.0,
            allow_rollup_hdrs=True,
            deny_delete=True,
            # reads go to the leader: a stale read of a record would break the claim (design §10.7)
            allow_direct=False,
            allow_msg_ttl=True,
            subject_delete_marker_ttl=spec.marker_ttl_s or None,
        )
    return StreamConfig(
        name=spec.name,
        description=spec.description,
        subjects=list(spec.subjects),
        retention=RetentionPolicy(spec.retention),
        discard=DiscardPolicy(spec.discard),
        storage=StorageType.FILE,
        max_msgs=spec.max_msgs,
        max_bytes=-1,
        max_msg_size=-1,
        max_msgs_per_subject=-1,
        max_age=spec.max_age_s,
        duplicate_window=spec.duplicate_window_s,
        allow_rollup_hdrs=False,
        allow_direct=False,
    )
