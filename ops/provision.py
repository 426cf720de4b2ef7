"""Makes the server hold what `contracts/topology.py` says, and reports where it differs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from contracts.settings import Catalog, SettingsError, load_settings
from contracts.topology import (
    DEADLINES,
    DEGRADED,
    LANES,
    LEADER,
    SLOTS,
    TASKS,
    BucketSpec,
    ConsumerSpec,
    StreamSpec,
    Topology,
    bucket_stream,
    lane_stream,
    topology,
)
from ops.nats_link import NatsLink, TransportUnavailable, UnusableServer
from ops.options import keep_option, nats_url_option, profile_option, settings_option

# What an operator may have set for reasons of their own, and what the server fills in, is left alone.
_STREAM_FIELDS: Final = [
    "subjects",
    "retention",
    "discard",
    "storage",
    "max_msgs",
    "max_age",
    "duplicate_window",
    "max_msgs_per_subject",
    "allow_msg_schedules",
    "allow_msg_ttl",
    "allow_rollup_hdrs",
    "deny_delete",
    "allow_direct",
    "subject_delete_marker_ttl",
]
_CONSUMER_FIELDS: Final = ["filter_subject", "ack_policy", "ack_wait", "max_deliver", "max_ack_pending"]


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


class NotProvisioned(Exception):
    """The server lacks streams or buckets, or they differ. The text says what to run."""


def wanted(catalog: Catalog, *, keep_s: float) -> Topology:
    """The topology for *catalog*, with finished tasks kept for *keep_s*."""
    return topology(tuple(catalog.models), lane_queue_max_msgs=catalog.lane_queue_max_msgs, keep_s=keep_s)


async def differences(link: NatsLink, want: Topology) -> list[Difference]:
    """What the server lacks or has otherwise. Changes nothing."""
    return [difference async for difference, _ in _compare(link, want)]


async def provision(link: NatsLink, want: Topology) -> list[Difference]:
    """Makes the server match *want* and returns what was changed. Safe to run again, and by several at once."""
    changed = []
    async for difference, mend in _compare(link, want):
        await mend()
        changed.append(difference)
    return changed


async def require_provisioned(link: NatsLink, want: Topology) -> None:
    """Raises NotProvisioned when a stream, consumer or bucket is missing (one that differs is the operator's)."""
    missing = [difference for difference in await differences(link, want) if difference.field == ""]
    if missing:
        names = ", ".join(difference.name for difference in missing)
        raise NotProvisioned(f"the server lacks {names}; run `warmlane provision`")


async def require_lane(link: NatsLink, model: str) -> None:
    """Raises NotProvisioned when there is no queue for lanes of *model*, or no bucket for what they tell."""
    await _require(link, lane_stream(model), bucket_stream(LANES))


async def require_degraded(link: NatsLink) -> None:
    """Raises NotProvisioned when the degraded queue is missing, or the bucket of its leader."""
    await _require(link, DEGRADED, bucket_stream(LEADER))


async def _require(link: NatsLink, *streams: str) -> None:
    for name in (*streams, bucket_stream(SLOTS), bucket_stream(TASKS), DEADLINES):
        try:
            await link.js.stream_info(name)
        except NotFoundError as error:
            raise NotProvisioned(f"the server lacks {name}; run `warmlane provision`") from error


_Mend = Callable[[], Awaitable[object]]


async def _compare(link: NatsLink, want: Topology) -> AsyncIterator[tuple[Difference, _Mend]]:
    manager = link.js
    specs: list[StreamSpec | BucketSpec] = [*want.streams, *want.buckets]
    for spec in specs:
        config = _stream_config(spec)
        name = str(config.name)
        try:
            have = (await manager.stream_info(name)).config
        except NotFoundError:
            yield Difference(name, "", None, None), partial(manager.add_stream, config)
        else:
            # an operator's own settings (replicas, placement) stay
            mended = have.evolve(**{field: getattr(config, field) for field in _STREAM_FIELDS})
            for difference in _differing(name, _STREAM_FIELDS, have, config):
                yield difference, partial(manager.update_stream, mended)
        for consumer in spec.consumers if isinstance(spec, StreamSpec) else ():
            wanted_consumer = _consumer_config(consumer)
            label = f"{name}/{consumer.name}"
            mend = partial(manager.add_consumer, name, wanted_consumer)
            try:
                present = (await manager.consumer_info(name, consumer.name)).config
            except NotFoundError:
                yield Difference(label, "", None, None), mend
            else:
                for difference in _differing(label, _CONSUMER_FIELDS, present, wanted_consumer):
                    yield difference, mend


def _differing(name: str, names: list[str], have: Any, want: Any) -> Iterator[Difference]:
    for field in names:
        ours, theirs = getattr(want, field), getattr(have, field)
        if (ours or None) != (theirs or None):
            yield Difference(name, field, theirs, ours)


def _stream_config(spec: StreamSpec | BucketSpec) -> StreamConfig:
    if isinstance(spec, BucketSpec):
        return StreamConfig(
            name=bucket_stream(spec.name),
            subjects=[f"$KV.{spec.name}.>"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            max_msgs=-1,
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
        subjects=list(spec.subjects),
        retention=RetentionPolicy(spec.retention),
        discard=DiscardPolicy(spec.discard),
        storage=StorageType.FILE,
        max_msgs=spec.max_msgs,
        max_msgs_per_subject=-1,
        max_age=spec.max_age_s,
        duplicate_window=spec.duplicate_window_s,
        allow_msg_schedules=spec.allow_msg_schedules or None,
        allow_msg_ttl=spec.allow_msg_ttl or None,
        # replacing a timer is a rollup of its subject
        allow_rollup_hdrs=spec.allow_msg_schedules,
        allow_direct=False,
    )


def _consumer_config(spec: ConsumerSpec) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=spec.name,
        filter_subject=spec.filter_subject,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=spec.ack_wait_s,
        max_deliver=-1,
        max_ack_pending=spec.max_ack_pending,
        deliver_policy=DeliverPolicy.ALL,
    )


@click.command(
    epilog="Examples:\n\n  warmlane provision\n\n  warmlane provision --check --nats-url nats://127.0.0.1:4222"
)
@nats_url_option
@settings_option
@profile_option
@keep_option
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when the server differs.")
def command(nats_url: str, settings: Path | None, profile: str, keep_s: float, check: bool) -> None:
    """Make the nats-server hold Warmlane's streams, consumers and buckets."""

    async def run() -> list[Difference]:
        catalog = load_settings(settings).catalog(profile)
        link = await NatsLink.connect(nats_url, name="provision")
        try:
            want = wanted(catalog, keep_s=keep_s)
            return await (differences if check else provision)(link, want)
        finally:
            await link.close()

    try:
        found = asyncio.run(run())
    except (SettingsError, TransportUnavailable, UnusableServer) as error:
        raise click.ClickException(str(error)) from error
    for difference in found:
        click.echo(f"{'differs' if check else 'mended '}  {difference}")
    if check and found:
        raise click.exceptions.Exit(1)
    if not found:
        click.echo("nothing to do: the server matches")
