"""Provisioning makes the server match, reports what it changed, and leaves the operator's own settings alone."""

import asyncio
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contracts.keys import parse_presented
from contracts.settings import Catalog
from contracts.topology import DEGRADED
from ops.commands.provision import command
from ops.nats.api_keys import read_keys
from ops.nats.link import NatsLink
from ops.nats.provisioning import NotProvisioned, differences, provision, require_provisioned, wanted
from tests.kit.behind import js_of
from tests.kit.support import KEEP_S, NatsServer


async def test_a_second_time_there_is_nothing_to_do(link: NatsLink, catalog: Catalog) -> None:
    assert await provision(link, wanted(catalog, keep_s=KEEP_S)) == []


async def test_drift_is_reported_and_mended(link: NatsLink, catalog: Catalog) -> None:
    want = wanted(catalog, keep_s=KEEP_S)
    info = await js_of(link).stream_info(DEGRADED)
    await js_of(link).update_stream(info.config.evolve(max_msgs=1_000, description="the operator's own words"))
    found = await differences(link, want)
    assert [str(difference) for difference in found] == ["DEGRADED: max_msgs is 1000, should be 25"]
    await provision(link, want)
    config = (await js_of(link).stream_info(DEGRADED)).config
    assert (config.max_msgs, config.description) == (25, "the operator's own words")


async def test_a_bucket_that_keeps_more_than_is_wanted_is_changed_in_place(link: NatsLink, catalog: Catalog) -> None:
    """An earlier version kept 16 revisions of every record: the newest 4 stay, and every key."""
    config = (await js_of(link).stream_info("KV_tasks")).config
    await js_of(link).update_stream(config.evolve(max_msgs_per_subject=16))
    for number in range(10):
        for key in ("one", "other"):
            await link.entries.put("tasks", key, str(number).encode())
    changed = await provision(link, wanted(catalog, keep_s=KEEP_S))
    assert [str(each) for each in changed] == ["KV_tasks: max_msgs_per_subject is 16, should be 4"]
    assert (await link.streams.depth("KV_tasks")).messages == 8
    for key in ("one", "other"):
        newest = await link.entries.get("tasks", key)
        assert newest is not None
        assert newest.value == b"9"


async def test_what_is_missing_stops_the_gateway(link: NatsLink, catalog: Catalog) -> None:
    want = wanted(catalog, keep_s=KEEP_S)
    await require_provisioned(link, want)
    await js_of(link).delete_stream(DEGRADED)
    with pytest.raises(NotProvisioned, match=r"DEGRADED.*warmlane provision"):
        await require_provisioned(link, want)


async def test_the_server_holds_what_the_design_says(link: NatsLink) -> None:
    degraded = (await js_of(link).stream_info(DEGRADED)).config
    assert (degraded.max_msgs, degraded.max_age, degraded.discard, degraded.retention) == (25, 30.0, "new", "workqueue")
    assert not degraded.allow_msg_schedules
    assert degraded.subject_delete_marker_ttl is None
    assert (await js_of(link).stream_info("KV_tasks")).config.allow_direct is False
    assert (await js_of(link).consumer_info("LANE_ANISORA", "worker")).config.max_deliver == -1


def test_the_command(nats_server: NatsServer) -> None:
    runner = CliRunner()
    check = runner.invoke(command, ["--nats-url", nats_server.url, "--check"])
    assert (check.exit_code, "LANE_ANISORA: missing" in check.output) == (1, True)
    assert runner.invoke(command, ["--nats-url", nats_server.url]).exit_code == 0
    again = runner.invoke(command, ["--nats-url", nats_server.url, "--check"])
    assert (again.exit_code, again.output) == (0, "nothing to do: the server matches\n")


async def test_existing_streams_get_their_description(link: NatsLink, catalog: Catalog) -> None:
    """As after an upgrade from a version that described nothing."""
    want = wanted(catalog, keep_s=KEEP_S)
    config = (await js_of(link).stream_info("DEGRADED")).config
    assert config.description
    await js_of(link).update_stream(config.evolve(description=""))
    consumer = (await js_of(link).consumer_info("DEGRADED", "worker")).config
    assert consumer.description
    await js_of(link).add_consumer("DEGRADED", consumer.evolve(description=""))
    assert {difference.name for difference in await provision(link, want)} == {"DEGRADED", "DEGRADED/worker"}
    assert (await js_of(link).stream_info("DEGRADED")).config.description == config.description
    assert await differences(link, want) == []


def first_key(server: NatsServer, file: Path) -> Result:
    options = ["--nats-url", server.url, "--first-key", str(file), "--keep", f"{KEEP_S:g}s"]
    return CliRunner().invoke(command, options)


def test_the_first_key_is_made_once(nats_server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "first.key"
    assert "no key was made" in first_key(nats_server, tmp_path / "gone" / "first.key").output
    made = first_key(nats_server, file)
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    presented = parse_presented(file.read_text().strip())
    assert presented is not None
    assert presented.text not in made.output
    again = first_key(nats_server, tmp_path / "second.key")
    assert (again.exit_code, (tmp_path / "second.key").exists()) == (0, False)

    async def keys() -> list[tuple[str, tuple[str, ...]]]:
        link = await NatsLink.connect(nats_server.url, name="test")
        found: list[tuple[str, tuple[str, ...]]] = [(key.id, key.scopes) for key in (await read_keys(link)).keys]
        await link.close()
        return found

    assert asyncio.run(keys()) == [(presented.id, ("admin",))]


def test_a_file_that_is_there_is_not_overwritten(nats_server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "first.key"
    file.write_text("of another server")
    refused = first_key(nats_server, file)
    assert (refused.exit_code, file.read_text()) == (1, "of another server")
    assert "remove it" in refused.output
