"""A lane: one model, kept warm on a card of its own, serving the stream of its model (FR-011, FR-019)."""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from contracts.lanes import LaneState
from contracts.settings import ModelEntry, Windows
from contracts.tasks import FailureCode, GenerationParameters, GenerationTask, Progress
from contracts.topology import lane_stream
from lane_worker.runtime import host_messages as messages
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.host import Host, HostLost, LoadFailed, SlotTaken, TimedOut
from lane_worker.runtime.loop import GaveUp, Result, Stopped, Succeeded, Unsuccessful, WorkLoop
from lane_worker.runtime.memory_line import log_memory, log_process_gone
from ops.artifacts import Artifacts
from ops.nats_link import NatsLink

WARMUP_TASK: Final = "warmup"
RESTART_WAIT_S: Final = 0.5
RESTART_WAIT_MAX_S: Final = 30.0

log = structlog.get_logger("lane")
