"""The operator's switch, from every side and on every gateway."""

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from contracts.lanes import LaneState
from contracts.topology import CONTROL, control_key
from tests.kit import warm_cli
from tests.kit.gateway import GatewayProcess, System
from tests.kit.support import BOUND_S, KEEP_S, clean_environment, eventually


@pytest.fixture(scope="module")
def second_gateway(bare_gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Another gateway on the same server."""
    gateway = GatewayProcess(tmp_path_factory.mktemp("second"), beside=bare_gateway)
    gateway.start("--keep", f"{KEEP_S:g}s")
    yield gateway
    gateway.stop()


@pytest.fixture
async def system(bare_system: System, second_gateway: GatewayProcess) -> System:
    """Two gateways that know of a warm lane of anisora, and no switch."""
    await bare_system.link.entries.put(CONTROL, control_key("anisora"), b"auto")
    await bare_system.lane_is(LaneState.WARM)
    await every_gateway_says(bare_system, second_gateway, "auto", "lane")
    return bare_system


async def shown(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=BOUND_S) as http:
        lanes = (await http.get("/admin/lanes")).json()
    found: dict[str, Any] = next(model for model in lanes["models"] if model["model"] == "anisora")
    return found | {"ignored": lanes["ignored_control"]}


async def every_gateway_says(system: System, second: GatewayProcess, mode: str, outcome: str) -> None:
    for url in (system.gateway.url, second.url):

        async def says(url: str = url) -> bool:
            model = await shown(url)
            return (model["mode"], model["route"]["outcome"]) == (mode, outcome)

        await eventually(says)


def lane_mode(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`warmlane lane-mode …`."""
    return warm_cli.run("lane-mode", *arguments, "--url", url, env=clean_environment())


async def test_a_switch_set_on_one_gateway_is_obeyed_by_all(system: System, second_gateway: GatewayProcess) -> None:
    response = await system.http.put("/admin/lanes/index-anisora/mode", json={"mode": "degraded"})
    assert (response.status_code, response.json()["model"], response.json()["mode"]) == (200, "anisora", "degraded")
    # the gateway that got the request obeys at once, the other one as soon as its watch delivers the switch
    assert (await system.submit())["route"] == "degraded"
    await every_gateway_says(system, second_gateway, "degraded", "degraded: manual")
    async with httpx.AsyncClient(base_url=second_gateway.url, timeout=BOUND_S) as http:
        assert (await http.get("/admin/lanes/anisora/mode")).json() == response.json()
    await system.http.put("/admin/lanes/anisora/mode", json={"mode": "auto"})
    assert (await system.submit())["route"] == "lane"
    await every_gateway_says(system, second_gateway, "auto", "lane")


async def test_a_switch_in_the_bucket_and_one_that_cannot_be_used(
    system: System, second_gateway: GatewayProcess
) -> None:
    key = control_key("anisora")
    await system.link.entries.put(CONTROL, key, b"degraded\n")
    await every_gateway_says(system, second_gateway, "degraded", "degraded: manual")
    await system.link.entries.put(CONTROL, key, b"Auto")
    for url in (system.gateway.url, second_gateway.url):

        async def is_reported(url: str = url) -> bool:
            return [entry["value"] for entry in (await shown(url))["ignored"]] == ["Auto"]

        await eventually(is_reported)
    await every_gateway_says(system, second_gateway, "degraded", "degraded: manual")
    # a gateway that starts later finds only the bucket, and must not send to the lanes what the others keep off them
    await asyncio.to_thread(second_gateway.stop)
    await asyncio.to_thread(second_gateway.start, "--keep", f"{KEEP_S:g}s")
    await every_gateway_says(system, second_gateway, "degraded", "degraded: manual")
    assert "control_ignored" in second_gateway.log()


async def test_the_command(system: System, second_gateway: GatewayProcess) -> None:
    url = second_gateway.url
    set_ = await asyncio.to_thread(lane_mode, url, "anisora", "degraded")
    assert (set_.returncode, set_.stdout[:23]) == (0, "anisora is degraded sin"), set_.stderr
    await every_gateway_says(system, second_gateway, "degraded", "degraded: manual")
    seen = await asyncio.to_thread(lane_mode, url, "anisora-v3.2")
    assert seen.stdout.startswith("anisora is degraded since ")
    wrong = await asyncio.to_thread(lane_mode, url, "sora", "degraded")
    assert wrong.returncode == 1
    assert "the models are anisora, phr00t" in wrong.stderr
    unusable = await asyncio.to_thread(lane_mode, url, "anisora", "off")
    assert unusable.returncode == 2
    await asyncio.to_thread(lane_mode, url, "anisora", "auto")
    await every_gateway_says(system, second_gateway, "auto", "lane")
