"""The scenes, each made once, and the numbers that they leave."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lane_worker.forking.fork_server import ForkServer
from tests.gpu.numbers import Numbers
from tests.gpu.scene import Scene, Where, build, on_card, on_cpu
from tests.kit.support import ROGUE_HOST, fork_server_at


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write", metavar="FILE", help="Write what was measured to FILE (docs/models/gpu.md).")


@pytest.fixture(scope="session")
def numbers(request: pytest.FixtureRequest) -> Iterator[Numbers]:
    """Collects the numbers, and writes them after the last test if `--write` names a file."""
    numbers = Numbers()
    yield numbers
    # in a run of the whole suite the option does not exist
    written = request.config.getoption("--write", default=None)
    if written is not None and not request.session.testsfailed:
        numbers.write(Path(written))


@pytest.fixture(scope="module", params=["cpu", pytest.param("card", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> Where:
    """Both places; the card's tests are skipped, with the reason, where there is no card."""
    return on_cpu() if request.param == "cpu" else on_card()


@pytest.fixture(scope="module")
def scene(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The place with its pipelines."""
    return build(where, tmp_path_factory.mktemp(f"models-{where.kind}"))


@pytest.fixture
async def rogues(rogue_forks: None) -> AsyncIterator[ForkServer]:
    """A fork server whose hosts behave well, unless a prompt says otherwise."""
    server = ForkServer(ROGUE_HOST, shared=fork_server_at(ROGUE_HOST))
    yield server
    await server.close()
