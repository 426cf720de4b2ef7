"""Pipeline hosts for tests: real ones with tiny pipelines, and short ways to ask them for a video."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace
from PIL import Image

from contracts.settings import Catalog, ModelEntry, load_settings
from contracts.tasks import GenerationParameters, ImageReference
from lane_worker.forking.fork_server import FORK_SERVER, ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Finished, Generate, StepFinished
from tests.kit.records import small_parameters
from tests.kit.support import fork_server_at

PROMPT: Final = "a lighthouse at dusk, é 火"
FOREVER_S: Final = 600.0  # longer than any test may take
CATALOG: Final[Catalog] = load_settings().catalog("tiny")
MODELS: Final = tuple(CATALOG.models)


class Workshop:
    """One fork server, one folder of tiny pipelines and one lock folder, for many hosts.

    Without a fork server of its own, it uses a fork of the one that all tests of a run share.
    """

    def __init__(self, folder: Path, fork_server: ForkServer | None = None) -> None:
        self.fork_server = fork_server or ForkServer(shared=fork_server_at(FORK_SERVER))
        self.models_dir = folder / "models"
        self.lock_dir = folder / "locks"
        self._hosts: list[Host] = []

    def host(self, *, slot: str = "cpu-0", step_seconds: float = 0.0) -> Host:
        """A new host on *slot*, not yet started."""
        host = Host(
            slot=slot,
            lock_dir=self.lock_dir,
            models_dir=self.models_dir,
            step_seconds=step_seconds,
            fork_server=self.fork_server,
            lock_wait_s=0.2,
        )
        self._hosts.append(host)
        return host

    async def slow_host(self, model: str = "phr00t", *, step_seconds: float = FOREVER_S, **timeouts: float) -> Host:
        """A loaded host on cpu-0, each step of which takes *step_seconds*."""
        host = self.host(step_seconds=step_seconds)
        await host.start()
        await host.load(self.entry(model, **timeouts))
        return host

    @staticmethod
    def entry(model: str, **timeouts: float) -> ModelEntry:
        """The tiny profile's *model* with other timeouts."""
        entry = CATALOG.models[model]
        return replace(entry, timeouts=replace(entry.timeouts, **timeouts))

    async def close_hosts(self) -> None:
        while self._hosts:
            await self._hosts.pop().close()


@asynccontextmanager
async def open_workshop(folder: Path, fork_server: ForkServer | None = None) -> AsyncIterator[Workshop]:
    """A workshop in *folder*; its fork server ends with the block."""
    workshop = Workshop(folder, fork_server)
    try:
        yield workshop
    finally:
        await workshop.fork_server.close()


@asynccontextmanager
async def loaded_hosts(folder: Path, workshop: Workshop) -> AsyncIterator[dict[str, Host]]:
    """A loaded host for each model on a slot of its own, with locks in *folder* and the pipelines of *workshop*."""
    lasting = Workshop(folder, workshop.fork_server)
    lasting.models_dir = workshop.models_dir
    loaded = {}
    for number, model in enumerate(MODELS):
        loaded[model] = lasting.host(slot=f"cpu-{number}")
        await loaded[model].start()
        await loaded[model].load(CATALOG.models[model])
    try:
        yield loaded
    finally:
        await lasting.close_hosts()


def parameters(model: str = "phr00t", **changes: Any) -> GenerationParameters:
    """A small video of *model*, with *changes*."""
    steps = CATALOG.models[model].constraints.steps.fixed
    assert steps is not None
    return replace(small_parameters(prompt=PROMPT, width=48, seed=7, steps=steps), **changes)


def request(
    folder: Path, wanted: GenerationParameters | None = None, *, task_id: str = "task", **more: Any
) -> Generate:
    """A request for the video *wanted*, to be written to *folder*."""
    return Generate(task_id, 1, wanted or parameters(), str(folder / f"{task_id}.mp4"), **more)


def ignore(_progress: StepFinished) -> None:
    """Takes a progress report and does nothing with it."""


async def finished(host: Host, wanted: Generate, on_progress: Callable[[StepFinished], None] = ignore) -> Finished:
    """The outcome of *wanted*, which has to succeed."""
    outcome = await host.generate(wanted, on_progress)
    assert isinstance(outcome, Finished), outcome
    return outcome


def image_file(folder: Path, name: str, content: bytes, *, size: tuple[int, int], kind: str = "png") -> dict[str, Any]:
    """Writes *content*; returns the fields of a request that name it as an image of *size* and *kind*."""
    path = folder / name
    path.write_bytes(content)
    reference = ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type=f"image/{kind}",
        bytes=len(content),
        width=size[0],
        height=size[1],
    )
    return {"image_path": str(path), "image": reference}


def encoded(folder: Path, kind: str, size: tuple[int, int], colour: str = "teal") -> bytes:
    """An image file of one *colour*."""
    path = folder / f"made.{kind}"
    Image.new("RGB", size, colour).save(path)
    return path.read_bytes()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
