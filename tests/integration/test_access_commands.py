"""Commands and API keys, with real gateways: which key a command presents, and which server it trusts."""

import asyncio
import json
from pathlib import Path

from contracts.keys import Presented
from ops.nats.api_keys import read_keys
from tests.kit.gateway import System
from tests.kit.keyed import Keyed, asked, every_gateway_answers, keyed, run, system

__all__ = ["keyed", "system"]  # fixtures


async def test_the_commands(system: System, keyed: Keyed) -> None:
    nats = ("--nats-url", system.gateway.nats.url)
    made = await asyncio.to_thread(
        run,
        *("keys", "add", "dora@example.org", "--scope", "read", "--scope", "submit", "--rate", "10"),
        *("--highest-priority", "standard", *nats),
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("\n") == 1
    _, key_id, secret = made.stdout.strip().split("_")
    assert secret not in made.stderr
    await every_gateway_answers(keyed, Presented(key_id, secret), 200)
    stored = next(key for key in (await read_keys(system.link)).keys if key.id == key_id)
    assert (stored.scopes, stored.rate_per_s) == (("submit", "read"), 10)
    assert stored.highest_priority == "standard"

    listed = await asyncio.to_thread(run, "keys", "list", "--json", *nats)
    found = next(key for key in json.loads(listed.stdout) if key["id"] == key_id)
    assert (found["caller"], found["revoked_at"]) == ("dora@example.org", None)
    table = await asyncio.to_thread(run, "keys", "list", *nats)
    for printed in (listed.stdout, table.stdout):
        assert key_id in printed
        assert secret not in printed
        assert stored.secret_sha256 not in printed

    # of a leaked key an operator may know only the text
    revoked = await asyncio.to_thread(run, "keys", "revoke", made.stdout.strip(), *nats)
    assert (revoked.returncode, revoked.stdout) == (0, f"revoked: key {key_id} of dora@example.org\n")
    await every_gateway_answers(keyed, Presented(key_id, secret), 401)
    listed = await asyncio.to_thread(run, "keys", "list", *nats)
    assert (key_id in listed.stdout, "--all shows them" in listed.stderr) == (False, True)
    listed = await asyncio.to_thread(run, "keys", "list", "--all", *nats)
    (row,) = (line for line in listed.stdout.splitlines() if key_id in line)
    assert "revoked" in row
    again = await asyncio.to_thread(run, "keys", "revoke", key_id, *nats)
    assert (again.returncode, "was revoked already" in again.stdout) == (0, True)
    unknown = await asyncio.to_thread(run, "keys", "revoke", "ffffffffffff", *nats)
    assert (unknown.returncode, "warmlane keys list" in unknown.stderr) == (1, True)


def test_client_commands_show_their_key_and_say_what_is_missing(keyed: Keyed, tmp_path: Path) -> None:
    status, printed = asked(keyed, "status", key=None)
    assert (status, "401 unauthorized" in printed, "Set WARMLANE_API_KEY" in printed) == (1, True, True)
    status, printed = asked(keyed, "status", key="alice")
    assert (status, "403 forbidden" in printed, "the scope admin" in printed) == (1, True, True)
    assert asked(keyed, "status", key="operator")[0] == 0
    assert asked(keyed, "lane-mode", "anisora", key="operator")[1].startswith("anisora is auto")
    file = tmp_path / "key"
    file.write_text(keyed.keys["operator"].text + "\n")
    assert asked(keyed, "status", "--api-key-file", str(file), key="alice")[0] == 0
    file.write_text("wl_not-a-key")
    status, printed = asked(keyed, "status", "--api-key-file", str(file), key=None)
    assert (status, "does not hold an API key" in printed, "not-a-key" in printed) == (1, True, False)


def test_client_commands_trust_the_authority_that_they_are_given(keyed: Keyed) -> None:
    status, printed = asked(keyed, "status", key="operator", tls=True)
    assert (status, "--ca or WARMLANE_CA" in printed) == (1, True), printed
    assert asked(keyed, "status", "--ca", str(keyed.tls.certificate.ca), key="operator", tls=True)[0] == 0
    assert asked(keyed, "status", key="operator", tls=True, WARMLANE_CA=str(keyed.tls.certificate.ca))[0] == 0
    status, printed = asked(keyed, "status", "--ca", str(keyed.tls.certificate.key), key="operator", tls=True)
    assert (status, "holds no certificate" in printed) == (1, True)
