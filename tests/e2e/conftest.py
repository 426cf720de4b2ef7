"""Fixtures of hosts, their slots, and published files. A fixture imports itself what imports torch."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.kit.fake_nvml import FakeNvml, fake_nvml

if TYPE_CHECKING:
    from lane_worker.forking.host import Host
    from tests.kit.workshop import Workshop
    from tests.kit.yard import Yard


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_yard() -> AsyncIterator["Yard"]:
    """The yard of a module's tests."""
    from tests.kit.yard import open_yard

    async with open_yard() as yard:
        yield yard


@pytest_asyncio.fixture(loop_scope="module")
async def yard(module_yard: "Yard") -> AsyncIterator["Yard"]:
    """`module_yard`; the slots that a test opens in it are closed when the test ends."""
    yield module_yard
    await module_yard.close_slots()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_workshop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator["Workshop"]:
    """The workshop of a module's tests."""
    from tests.kit.workshop import open_workshop

    async with open_workshop(tmp_path_factory.mktemp("host")) as workshop:
        yield workshop


@pytest_asyncio.fixture(loop_scope="module")
async def workshop(module_workshop: "Workshop") -> AsyncIterator["Workshop"]:
    """`module_workshop`; the hosts that a test takes from it are closed when the test ends."""
    yield module_workshop
    await module_workshop.close_hosts()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(
    tmp_path_factory: pytest.TempPathFactory, module_workshop: "Workshop"
) -> AsyncIterator[dict[str, "Host"]]:
    """A loaded host for each model, for tests that leave it as it was."""
    from tests.kit.workshop import loaded_hosts

    async with loaded_hosts(tmp_path_factory.mktemp("lasting"), module_workshop) as hosts:
        yield hosts


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A card of 80 GiB whose figures the test sets."""
    with fake_nvml(tmp_path, monkeypatch) as card:
        yield card


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer in its published form."""
    from tests.kit.small_checkpoints import tokenizer

    return tokenizer(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def anisora(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """The folder from `publish_anisora`. Tests must only read it."""
    from tests.kit.published import publish_anisora

    return publish_anisora(tmp_path_factory.mktemp("anisora"), tokens)


@pytest.fixture(scope="session")
def phr00t(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """The folder from `publish_phr00t`. Tests must only read it."""
    from tests.kit.published import publish_phr00t

    return publish_phr00t(tmp_path_factory.mktemp("phr00t"), tokens)


@pytest.fixture(scope="session")
def as_published(phr00t: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the types of Phr00t's v9 and v10, in a folder with the tokenizer. Tests must only read it."""
    from lane_worker.pipelines.load import load_pipeline
    from tests.kit.published import PHR00T
    from tests.kit.small_checkpoints import as_phr00t_publishes, checkpoint, published, write_all_in_one

    folder = tmp_path_factory.mktemp("v10")
    pipeline = load_pipeline(checkpoint(PHR00T, "original"), phr00t.parent, device="cpu")
    write_all_in_one(PHR00T, as_phr00t_publishes(published(PHR00T, pipeline)), folder / "aio.safetensors")
    shutil.copytree(phr00t / "google", folder / "google")
    return folder / "aio.safetensors"


@pytest.fixture
def as_downloaded(anisora: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folders Index-anisora, with one file for each expert of V3.2, and Wan2.2-I2V-A14B, with everything."""
    from safetensors.torch import save_file

    from tests.kit.published import load_all

    downloads = tmp_path / "downloads"
    for name in ("high_noise_model", "low_noise_model"):
        (downloads / "Index-anisora" / "V3.2" / name).mkdir(parents=True)
        expert = downloads / "Index-anisora" / "V3.2" / name / "diffusion_pytorch_model.safetensors"
        save_file(load_all(anisora / name), expert)
    shutil.copytree(anisora, downloads / "Wan2.2-I2V-A14B")
    return downloads / "Index-anisora", downloads / "Wan2.2-I2V-A14B"
