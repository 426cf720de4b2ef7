"""The programs of docs/clients.md, unchanged: each makes a video on a gateway with a key and a worker that films.
`tests/e2e/test_docs.py` runs those with curl."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import av
import httpx
import pytest
import pytest_asyncio
from msgspec.structs import replace

from contracts.lanes import LaneState
from contracts.settings import load_settings
from ops.ending import end
from ops.nats.api_keys import add
from ops.nats.link import NatsLink
from tests.kit.filming import FRAMES, FilmingRunner
from tests.kit.gateway import GatewayProcess, provisioned_gateway, report_lane
from tests.kit.patient import connected
from tests.kit.steered import Worker
from tests.kit.support import BOUND_S, clean_environment, eventually

PAGE: Final = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
_BLOCK: Final = re.compile(r"^```(python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS: Final[list[tuple[str, str]]] = _BLOCK.findall(PAGE)
# Each program by words in it, so that a new program is not left out.
NAMES: Final = {"with Client() as": "threads", "AsyncClient()": "asyncio", "busy_s=0": "errors", "import { ": "node"}


def name_of(program: str) -> str:
    return next((name for words, name in NAMES.items() if words in program), "openai")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with provisioned_gateway(tmp_path_factory.mktemp("gateway")) as process:
        yield process


async def beat(link: NatsLink) -> None:
    """Reports the lane as warm, as often as a lane does: the programs take longer than a report counts."""
    while True:
        await report_lane(link, "anisora", LaneState.WARM)
        await asyncio.sleep(5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment(gateway: GatewayProcess) -> AsyncIterator[dict[str, str]]:
    """The environment of a program that calls the gateway, which has a warm lane and requires the key."""
    link = await connected(gateway.nats.url)
    key = await add(link, "alice", ("submit", "read"), rate_per_s=None, now=datetime.now(UTC))
    windows = replace(load_settings().catalog("tiny").windows, lease_renew_s=0.1)
    worker = Worker(link, windows, gateway.data_dir, "films", runs=FilmingRunner)
    beating = asyncio.create_task(beat(link))
    async with httpx.AsyncClient(
        base_url=gateway.url, headers={"Authorization": f"Bearer {key.text}"}, timeout=BOUND_S
    ) as http:

        async def is_warm() -> bool:
            answer = await http.get("/readyz")
            return bool(answer.json()["models"]["anisora"]["warm"])

        await eventually(is_warm)
    yield clean_environment() | {
        "WARMLANE_URL": gateway.url,
        "WARMLANE_API_KEY": key.text,
        "OPENAI_BASE_URL": f"{gateway.url}/v1",
        "OPENAI_API_KEY": key.text,
        "PATH": os.environ["PATH"],
    }
    await end(beating)
    await worker.close()
    await link.close()


def test_every_way_has_its_program() -> None:
    assert sorted(name_of(program) for _, program in PROGRAMS) == ["asyncio", "errors", "node", "openai", "threads"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("language", "program"), [pytest.param(*each, id=name_of(each[1])) for each in PROGRAMS], scope="module"
)
async def test_a_program_does_what_the_page_says(
    language: str, program: str, environment: dict[str, str], tmp_path: Path
) -> None:
    if language == "js" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    path = tmp_path / ("program.mjs" if language == "js" else "program.py")
    path.write_text(program)
    process = await asyncio.create_subprocess_exec(
        "node" if language == "js" else sys.executable,
        path,
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(BOUND_S):
        printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    videos = sorted(tmp_path.glob("*.mp4"))
    if name_of(program) == "errors":
        assert printed == "/steps steps: expected 8, got 7\n"
        return
    assert [each.name for each in videos] == (["boat.mp4", "fox.mp4"] if "boat.mp4" in program else ["fox.mp4"])
    for video in videos:
        with av.open(str(video)) as container:
            assert sum(1 for _ in container.decode(video=0)) == FRAMES
