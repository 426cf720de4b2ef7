"""`ops/runbook.md`, line by line, as printed: by the real NATS CLI, in a real shell, on a real server, as the user
that the line names. The tests check output and effect. They are skipped without the CLI of `.ci/tools`.

A section without a test fails, and so does a line that its test does not reach.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import pytest

from contracts.topology import (
    CONTROL,
    DEGRADED,
    TASKS,
)
from ops.nats.link import NatsLink
from tests.integration.runbook_sections import SECTIONS
from tests.kit.behind import client_of, js_of
from tests.kit.gateway import GatewayProcess
from tests.kit.runbook import LANE, RUNBOOK, Page, Stage, in_shell, sections
from tests.kit.tools import tool

pytestmark = pytest.mark.tools


@pytest.fixture
async def stage(
    gateway: GatewayProcess,
    http: httpx.AsyncClient,
    gateway_link: NatsLink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    tool("nats"), tool("jq")
    monkeypatch.chdir(tmp_path)
    for stream in (LANE, DEGRADED):
        await js_of(gateway_link).purge_stream(stream)
    await gateway_link.entries.put(CONTROL, "lanes.anisora", b"auto")
    stage = Stage(gateway, http, gateway_link, tmp_path)
    await stage.says("lane")
    async with stage.leave:
        yield stage


@pytest.mark.parametrize("heading", sections())
async def test_section(heading: str, stage: Stage) -> None:
    page = Page(stage, sections()[heading])
    await SECTIONS[heading](stage, page)
    page.finish()


def test_the_headings_stay() -> None:
    """Alerts and the text link to them."""
    assert list(sections()) == list(SECTIONS)
    anchors = {re.sub(r"[^a-z-]", "", heading.lower().replace(" ", "-")) for heading in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK.read_text())) <= anchors


# The server refuses each of these to `operator`, including those that the runbook runs as `admin`.
REFUSED: Final = (
    "consumer next LANE_ANISORA worker",
    "consumer rm LANE_ANISORA worker --force",
    "consumer rm DEGRADED worker --force",
    "stream purge LANE_ANISORA --force",
    "stream rm LANE_ANISORA --force",
    "kv put tasks mine x",
    "kv del tasks mine --force",
    "kv purge tasks mine --force",
    "trace lane.anisora.mine",
)


async def test_what_is_refused_to_operator(stage: Stage) -> None:
    """The real CLI says why, and nothing is changed."""
    given = [re.sub(r"--context \$ADMIN ", "", line.command) for lines in sections().values() for line in lines]
    changing = [f"nats {command}" for command in REFUSED]
    changing += [new for new, old in zip(given, _commands(), strict=True) if "$ADMIN" in old and "restore" not in new]
    await stage.submit()
    revision = await stage.link.entries.put(TASKS, "mine", b"{}")
    await stage.link.entries.put(TASKS, "mine", b"[]")
    pause = json.dumps({"pause_until": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}).encode()
    await client_of(stage.link).request(f"$JS.API.CONSUMER.PAUSE.{LANE}.worker", pause, timeout=20)
    before = await js_of(stage.link).stream_info(LANE), await js_of(stage.link).stream_info("KV_tasks")

    async def said(command: str) -> str:
        process = await in_shell(
            command, stage.gateway.nats, stage.folder, {"ID": "mine", "SEQ": 1, "REVISION": revision}, timeout="1s"
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return output.decode() if process.returncode else f"it succeeded: {output.decode()}"

    printed = dict(zip(changing, await asyncio.gather(*map(said, changing)), strict=True))
    assert {command: text for command, text in printed.items() if "Permissions Violation" not in text} == {}
    await client_of(stage.link).request(f"$JS.API.CONSUMER.PAUSE.{LANE}.worker", b"{}", timeout=20)
    await js_of(stage.link).purge_stream("KV_tasks", subject="$KV.tasks.mine")
    after = await js_of(stage.link).stream_info(LANE), await js_of(stage.link).stream_info("KV_tasks")
    assert [info.state.last_seq for info in after] == [info.state.last_seq for info in before]
    kept = [info.state.messages for info in before]
    assert [info.state.messages for info in after] == [kept[0], kept[1] - 2]


def _commands() -> list[str]:
    return [line.command for lines in sections().values() for line in lines]
