"""Clients generated from `/openapi.json`, as other programs would use them: a whole job with each.

The generators are tools of `.ci/tools`; without them these tests are skipped, and say so.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from contracts.lanes import LaneState
from ops.nats.api_keys import add
from tests.kit.gateway import GatewayProcess, provisioned_gateway, report_lane
from tests.kit.patient import connected
from tests.kit.played import CONTENT, finished
from tests.kit.support import BOUND_S, NO_TLS, eventually
from tests.kit.tools import tool

pytestmark = pytest.mark.tools

CLIENTS: Final = Path(__file__).parents[1] / "clients"


@pytest.fixture(scope="module")
def keyed_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, str]]:
    """A gateway with a warm lane, and the only key that it accepts."""
    with provisioned_gateway(tmp_path_factory.mktemp("gateway"), "anisora") as process:

        async def prepare() -> str:
            link = await connected(process.nats.url)
            key = await add(link, "alice", ("submit", "read"), now=datetime.now(UTC))
            async with httpx.AsyncClient(base_url=process.url, verify=NO_TLS, timeout=BOUND_S) as client:

                async def is_closed() -> bool:
                    return (await client.get("/settings")).status_code == 401

                await eventually(is_closed)
            await link.close()
            return key.text

        yield process, asyncio.run(prepare())


@pytest.fixture(scope="module")
def document(keyed_gateway: tuple[GatewayProcess, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_text(httpx.get(f"{keyed_gateway[0].url}/openapi.json", verify=NO_TLS, timeout=BOUND_S).text)
    return path


def runs(*command: str | Path, cwd: Path) -> str:
    """What *command* prints. It has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def says(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(BOUND_S):
        line = await process.stdout.readline()
        if not line:
            _, errors = await process.communicate()
            raise AssertionError(errors.decode())
    said: dict[str, Any] = json.loads(line)
    return said


async def whole_job(gateway: GatewayProcess, key: str, *command: str | Path, **environment: str) -> None:
    """Runs *command*, a session of `tests/clients`, plays the worker of its task, and judges its output."""
    link = await connected(gateway.nats.url)
    await report_lane(link, "anisora", LaneState.WARM)
    env = os.environ | environment
    process = await asyncio.create_subprocess_exec(*command, gateway.url, key, stdout=PIPE, stderr=PIPE, env=env)
    try:
        said = await says(process)
        task_id = said.pop("id")
        assert said == {"step": "submitted", "status": 202, "location": f"/tasks/{task_id}"}
        await finished(link, gateway, task_id)
        rest = [await says(process) for _ in range(6)]
        assert rest == [
            {"step": "ended", "status": "done", "frames": 17},
            {"step": "downloaded", "sha256": hashlib.sha256(CONTENT).hexdigest()},
            {"step": "listed", "ids": [task_id, *rest[2]["ids"][1:]]},
            {"step": "refused", "code": "validation_failed", "pointers": ["/prompt", "/width"]},
            {"step": "unknown", "code": "task_not_found"},
            {"step": "stranger", "code": "unauthorized"},
        ]
        async with asyncio.timeout(BOUND_S):
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await link.close()


async def test_a_python_client_does_a_whole_job(
    keyed_gateway: tuple[GatewayProcess, str], document: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.yaml"
    names.write_text("package_name_override: warmlane_generated\n")  # `warmlane_client` is installed here
    command: list[str | Path] = [
        tool("openapi-python-client"),
        "generate",
        "--path",
        document,
        "--output-path",
        tmp_path / "client",
        "--config",
        names,
    ]
    said = runs(*command, "--fail-on-warning", cwd=tmp_path)
    assert "warning" not in said.lower(), said
    path = os.pathsep.join((str(tmp_path / "client"), *filter(None, [os.environ.get("PYTHONPATH")])))
    await whole_job(*keyed_gateway, sys.executable, CLIENTS / "session.py", PYTHONPATH=path)


async def test_a_typescript_client_does_a_whole_job(
    keyed_gateway: tuple[GatewayProcess, str], document: Path, tmp_path: Path
) -> None:
    generator = tool("openapi-typescript")
    installed = generator.parent / f"{generator.name}.d"
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(CLIENTS / "session.ts", tmp_path)
    said = runs(generator, document, "-o", tmp_path / "warmlane.d.ts", cwd=tmp_path)
    assert "warn" not in said.lower(), said
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom"]
    node = installed / "bin" / "node"
    # the compiler also checks the generated declarations
    runs(node, installed / "node_modules/typescript/bin/tsc", *options, "session.ts", cwd=tmp_path)
    await whole_job(*keyed_gateway, node, tmp_path / "session.js")
