"""What never changes in a simulated system: its settings, its streams, its requests, and who takes part."""

from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from contracts.generation.request import AcceptedRequest
from contracts.lanes import LaneHeartbeat, LaneState
from contracts.settings import Catalog, load_settings
from contracts.tasks import ImageReference
from contracts.topology import DEGRADED, Topology
from ops.nats.provisioning import _stream_config, wanted
from ops.nats.pull import consumer_config
from tests.model.jetstream import moment

MODELS: Final = ("anisora", "phr00t")
DEGRADED_MAX: Final = 3
LANE_MAX: Final = 3
GATEWAYS: Final = ("gateway-0", "gateway-1")
WORKERS: Final = ("anisora-0", "anisora-1", "phr00t-0", "degraded-0")


@lru_cache(maxsize=1)
def configured() -> tuple[Catalog, Topology]:
    """The packaged settings and topology, with queues so short that they are full now and then."""
    catalog = replace(load_settings().catalog("tiny"), lane_queue_max_msgs=LANE_MAX)
    full = wanted(catalog, keep_s=86_400.0)
    streams = tuple(replace(spec, max_msgs=DEGRADED_MAX) if spec.name == DEGRADED else spec for spec in full.streams)
    return catalog, replace(full, streams=streams)


@lru_cache(maxsize=1)
def _configs(topology: Topology) -> list[tuple[Any, list[Any]]]:
    found: list[tuple[Any, list[Any]]] = []
    for spec in topology.streams:
        found.append((_stream_config(spec), [consumer_config(consumer) for consumer in spec.consumers]))
    found.extend((_stream_config(bucket), []) for bucket in topology.buckets)
    return found


def streams_of(topology: Topology) -> list[tuple[Any, list[Any]]]:
    """The configurations that provisioning would send."""
    return _configs(topology)


@lru_cache
def request_of(model: str, *, image: bool) -> AcceptedRequest:
    """A request that passed every check."""
    picture = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=1, width=1, height=1)
    return AcceptedRequest(
        model=model,
        prompt="x",
        negative_prompt="",
        image=picture if image else None,
        image_content=b"image" if image else None,
        width=96,
        height=64,
        num_frames=17,
        fps=16,
        seed=1,
        steps=4,
        cfg=1.0,
        fingerprint=f"{model} {image}",
    )


@lru_cache
def heartbeat_of(model: str, number: int, state: LaneState) -> bytes:
    """A heartbeat that stays fresh: another test is about lanes that fall silent."""
    return msgspec.json.encode(
        LaneHeartbeat(
            model=model,
            worker=f"{model}-{number}",
            state=state,
            health_age_s=-1e6,
            slot="cpu-0",
            pid=1,
            started_at=moment(0.0),
        )
    )
