"""`warmlane webhooks` against a real gateway, and the receivers of docs/use/webhooks.md as printed."""

import asyncio
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway.webhooks.sealing import new_secret
from gateway.webhooks.signing import signed_headers
from ops.commands.webhooks import command
from tests.kit.gateway import System
from tests.kit.receivers import answering, receiving
from tests.kit.support import BOUND_S, clean_environment, eventually_sync, free_port
from tests.kit.webhooks import delivery, gateway, run, system

__all__ = ["gateway", "system"]  # fixtures

DOC = Path(__file__).parents[2] / "docs" / "use" / "webhooks.md"
BODY = '{"type":"task.done","timestamp":"2026-03-01T12:00:04Z","data":{"id":"t1"}}'


async def warmlane(system: System, *words: str) -> Result:
    """Runs `warmlane webhooks` *words*; the receiver of this process can answer meanwhile."""
    arguments = [*words, "--url", system.gateway.url]
    return await asyncio.to_thread(CliRunner().invoke, command, arguments, env={"WARMLANE_API_KEY": ""})


async def test_an_endpoint_from_its_registration_to_its_end(system: System) -> None:
    async with receiving() as receiver:
        added = await warmlane(system, "add", receiver.url, "--event", "task.done", "--json")
        assert added.exit_code == 0, added.output
        made = json.loads(added.stdout)
        secret, endpoint = made["secret"], made["endpoint"]["id"]
        assert secret.startswith("whsec_")
        listed = await warmlane(system, "list", "--json")
        assert [each["id"] for each in json.loads(listed.stdout)["endpoints"]] == [endpoint]
        assert secret not in listed.output
        tested = await warmlane(system, "test", endpoint)
        assert (tested.exit_code, "answered 204" in tested.output) == (0, True), tested.output
        assert receiver.received[-1].verified(secret)["type"] == "webhook.test"
        (came,) = await receiver.gets(await run(system), "task.done")
        came.verified(secret)
        await delivery(system, came.id, "delivered")
        shown = json.loads((await warmlane(system, "deliveries", "--endpoint", endpoint, "--json")).stdout)
        assert [(each["id"], each["status"]) for each in shown["deliveries"]] == [(came.id, "delivered")]
        # the whole id, however narrow the terminal: users copy it into `redeliver`
        assert (await warmlane(system, "deliveries")).output.splitlines()[0].startswith(f"{came.id}  delivered")
        again = await warmlane(system, "redeliver", came.id)
        assert (again.exit_code, again.output) == (0, f"queued again: {came.id}\n")
        rotated = await warmlane(system, "rotate", endpoint)
        assert rotated.stdout.strip() not in ("", secret)
        assert (await warmlane(system, "secret")).stdout.startswith("whsec_")
        assert (await warmlane(system, "rotate", "requests")).stdout.startswith("whsec_")
        removed = await warmlane(system, "remove", endpoint)
        assert removed.output == f"removed {endpoint}\n"


async def test_what_is_dead_comes_back_at_once(system: System) -> None:
    async with receiving(answering(410)) as receiver:
        added = await warmlane(system, "add", receiver.url, "--event", "task.done")
        assert added.stdout.startswith("whsec_")
        (came,) = await receiver.gets(await run(system), "task.done")
        await delivery(system, came.id, "dead")
        endpoint = json.loads((await warmlane(system, "list", "--json")).stdout)["endpoints"][0]["id"]
        assert "disabled" in (await warmlane(system, "list")).output
        receiver.answer = answering(500)
        assert (await warmlane(system, "test", endpoint)).exit_code == 1
        receiver.answer = answering(200)
        assert (await warmlane(system, "test", endpoint)).exit_code == 0
        assert came.id in (await warmlane(system, "redeliver", "--dead")).output
        await delivery(system, came.id, "delivered")


async def test_mistakes_say_what_to_do_next(system: System) -> None:
    refused = await warmlane(system, "add", "https://10.0.0.1/")
    assert (refused.exit_code, "--webhooks-allow" in refused.output) == (1, True), refused.output
    assert "no endpoint of yours" in (await warmlane(system, "test", "ep_nobody")).output
    assert "no delivery of yours" in (await warmlane(system, "redeliver", "nothing")).output
    assert (await warmlane(system, "redeliver")).exit_code == 2
    assert "registers one" in (await warmlane(system, "list")).output


def blocks() -> tuple[str, str, str]:
    server, checker, openai = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    return server, checker, openai


def test_the_receiver_of_the_page_takes_what_is_signed_and_nothing_else(tmp_path: Path) -> None:
    program, secret, port = tmp_path / "receiver.py", new_secret(), free_port()
    program.write_text(blocks()[0])
    environment = clean_environment() | {"WEBHOOK_SECRET": secret, "PORT": str(port)}
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([sys.executable, str(program)], env=environment, stdout=out, stderr=out)

    def answer(signed_with: str) -> int | None:
        headers = signed_headers("m1", BODY, [signed_with], datetime.now(UTC))
        try:
            return httpx.post(
                f"http://127.0.0.1:{port}/", content=BODY, headers=headers, trust_env=False, timeout=BOUND_S
            ).status_code
        except httpx.ConnectError:
            assert process.poll() is None, (tmp_path / "out").read_text()
            return None

    try:
        assert eventually_sync(lambda: answer(secret)) == 204
        assert answer(new_secret()) == 401
    finally:
        process.kill()
        process.wait()
    assert "task.done t1" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(("block", "valid"), [(1, "valid"), (2, "task.done t1")], ids=["no package", "openai"])
def test_the_check_of_the_page_agrees(block: int, valid: str, tmp_path: Path) -> None:
    program, secret = tmp_path / "check.py", new_secret()
    program.write_text(blocks()[block])
    (tmp_path / "body").write_text(BODY)

    def verdict(*secrets: str) -> str:
        headers = signed_headers("m1", BODY, secrets, datetime.now(UTC))
        (tmp_path / "headers").write_text("".join(f"{name}: {value}\n" for name, value in headers.items()))
        came = subprocess.run(
            [sys.executable, str(program), str(tmp_path / "headers"), str(tmp_path / "body")],
            env=clean_environment() | {"WEBHOOK_SECRET": secret},
            capture_output=True,
            text=True,
            check=True,
        )
        return came.stdout.strip()

    assert verdict(new_secret(), secret) == valid
    assert verdict(new_secret()) == "invalid"
