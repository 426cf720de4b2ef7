"""What each KV bucket holds. `Bucket(link, HEARTBEATS)` reads and writes it."""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from contracts.keys import ApiKey, decode_key, encode_key
from contracts.lanes import (
    ColdStart,
    FallbackEpisode,
    LaneHeartbeat,
    LaneSwitch,
    Leadership,
    VideoPipelineSlot,
    decode_cold_start,
    decode_episode,
    decode_heartbeat,
    decode_leadership,
    decode_slot,
    decode_switch,
    encode_switch,
)
from contracts.tasks import GenerationTask, decode_task_of, encode_task
from contracts.topology import (
    COLD_STARTS,
    CONTROL,
    DELIVERIES,
    FALLBACKS,
    KEYS,
    LANES,
    LEADER,
    SLOTS,
    TASKS,
    WEBHOOKS,
)
from contracts.webhooks import WebhookDelivery, WebhookEndpoint, decode_delivery, decode_endpoint, encode_entry
from ops.nats.bucket import Content

S = TypeVar("S", bound=Struct)


def _by_value(decode: Callable[[bytes], S]) -> Callable[[str, bytes], S]:
    return lambda _, data: decode(data)


HEARTBEATS: Final = Content[LaneHeartbeat](LANES, "heartbeat", msgspec.json.encode, _by_value(decode_heartbeat))
LEADERSHIPS: Final = Content[Leadership](LEADER, "leadership", msgspec.json.encode, _by_value(decode_leadership))
SHOWN_SLOTS: Final = Content[VideoPipelineSlot](SLOTS, "slot", msgspec.json.encode, _by_value(decode_slot))
STARTS: Final = Content[ColdStart](COLD_STARTS, "cold_start", msgspec.json.encode, _by_value(decode_cold_start))
EPISODES: Final = Content[FallbackEpisode](
    FALLBACKS, "fallback_episode", msgspec.json.encode, _by_value(decode_episode)
)
SWITCHES: Final = Content[LaneSwitch](CONTROL, "entry", encode_switch, _by_value(decode_switch))
API_KEYS: Final = Content[ApiKey](KEYS, "api_key", encode_key, decode_key)
ENDPOINTS: Final = Content[WebhookEndpoint](WEBHOOKS, "webhook_endpoint", encode_entry, decode_endpoint)
WEBHOOK_DELIVERIES: Final = Content[WebhookDelivery](DELIVERIES, "webhook_delivery", encode_entry, decode_delivery)
RECORDS: Final = Content[GenerationTask](TASKS, "record", encode_task, decode_task_of)
