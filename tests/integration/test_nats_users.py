"""Every role on a real server with `nats.conf` can do its own work, and nothing else (design §10.8)."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import nats.errors
import pytest
import trustme
from structlog.testing import capture_logs

from contracts.settings import Catalog, load_settings
from contracts.topology import TASKS
from ops.nats.access import ROLES, NatsAccess, Role, environment_for, password_variable
from ops.nats.denials import Denied
from ops.nats.errors import NotAllowed, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.server import find_nats_server, nats_conf
from tests.kit.behind import client_of, js_of
from tests.kit.support import KEEP_S, NatsServer, clean_environment, eventually, free_port

A: Role = "admin"
WANT = wanted(load_settings().catalog("tiny"), keep_s=KEEP_S)
# `system` has an account of its own, where none of these subjects leads anywhere.
OURS: list[Role] = [role for role in ROLES if role != "system"]
BUCKETS = [bucket.name for bucket in WANT.buckets]

# The roles that may publish to each subject; `admin` may publish to all.
PUBLISHERS: dict[str, set[Role]] = {
    "lane.anisora.t1": {"gateway"},
    "degraded.anisora.t1": {"gateway"},
    "demand.anisora": {"gateway"},
    "waiting.t1": {"gateway"},
    "refusing.KV_tasks": {"gateway", "lane", "degraded", "supervisor"},
    "$KV.tasks.t1": {"gateway", "lane", "degraded", "supervisor"},
    "$KV.lanes.anisora.x": {"lane", "supervisor"},
    "$KV.slots.cpu-0": {"gateway", "lane", "degraded"},
    "$KV.leader.degraded": {"degraded"},
    "$KV.control.lanes.anisora": {"gateway"},
    "$KV.fallbacks.anisora": {"gateway"},
    "$KV.cold_starts.anisora": {"lane", "supervisor"},
    "$KV.keys.k1": {"gateway"},
    "$KV.leader.webhooks": {"gateway"},
    "$KV.webhooks.ep_1": {"gateway"},
    "$KV.deliveries.t1_done_ep_1": {"gateway"},
    # the server's own: reading, taking, removing, changing
    "$JS.API.STREAM.INFO.DEGRADED": set(OURS),
    "$JS.API.STREAM.NAMES": {"operator"},
    "$JS.API.STREAM.MSG.GET.KV_tasks": {"operator", "gateway", "lane", "degraded", "supervisor"},
    "$JS.API.STREAM.MSG.GET.KV_keys": {"gateway"},
    "$JS.API.STREAM.MSG.GET.KV_webhooks": {"gateway"},
    "$JS.API.CONSUMER.CREATE.KV_webhooks": {"gateway"},
    "$JS.API.STREAM.MSG.GET.DEGRADED": {"operator", "gateway"},
    "$JS.API.CONSUMER.CREATE.KV_tasks": {"operator", "gateway"},
    "$JS.API.CONSUMER.CREATE.KV_keys": {"gateway"},
    "$JS.API.CONSUMER.CREATE.DEGRADED": set(),
    # recreates the consumer with its own filter: that is a part of the subject, and the server compares the two
    "$JS.API.CONSUMER.CREATE.LANE_ANISORA.worker.lane.anisora.*": {"lane"},
    "$JS.API.CONSUMER.CREATE.LANE_ANISORA.mine.lane.anisora.*": set(),
    "$JS.API.CONSUMER.CREATE.DEGRADED.worker.degraded.*.*": {"degraded"},
    "$JS.API.INFO": {"operator", "gateway"},
    "$JS.API.CONSUMER.MSG.NEXT.DEGRADED.worker": {"degraded"},
    "$JS.API.CONSUMER.MSG.NEXT.LANE_ANISORA.worker": {"lane"},
    "$JS.ACK.DEGRADED.worker.1.1.1.1.0": {"degraded"},
    "$JS.ACK.LANE_ANISORA.worker.1.1.1.1.0": {"lane"},
    "$JS.API.STREAM.MSG.DELETE.DEGRADED": {"gateway"},
    "$JS.API.STREAM.PURGE.LANE_ANISORA": {"gateway"},
    **{f"$JS.API.STREAM.PURGE.KV_{bucket}": set() for bucket in BUCKETS},
    **{f"$JS.API.STREAM.MSG.DELETE.KV_{bucket}": set() for bucket in BUCKETS},
    "$JS.API.STREAM.CREATE.MINE": set(),
    "$JS.API.STREAM.UPDATE.DEGRADED": set(),
    "$JS.API.STREAM.DELETE.DEGRADED": set(),
    "$JS.API.STREAM.SNAPSHOT.KV_tasks": set(),
    "$JS.API.STREAM.RESTORE.MINE": set(),
    "$JS.API.CONSUMER.DELETE.DEGRADED.worker": set(),
    "$JS.API.CONSUMER.DELETE.KV_lanes.mine": {"operator"},  # the NATS CLI needs it after `nats kv ls`
    "$JS.API.CONSUMER.DELETE.KV_keys.mine": set(),
    "$SYS.REQ.USER.INFO": {"operator"},
    "$JS.API.CONSUMER.PAUSE.DEGRADED.worker": set(),
    "_INBOX_gateway.x": {"gateway"},
    "_INBOX_lane.x": set(),
    "anything.else": set(),
}
# The roles that may subscribe to each subject.
LISTENERS: dict[str, set[Role]] = {
    "$KV.tasks.t1": {"lane", "degraded"},
    "$KV.keys.>": set(),
    "lane.>": set(),
    "degraded.anisora.t1": set(),
    "demand.anisora": {"operator", "lane"},
    "waiting.*": {"operator", "gateway"},
    "refusing.*": {"operator", "gateway"},
    "_INBOX_gateway.>": {"gateway"},
    "_INBOX_lane.>": {"lane"},
    "_INBOX_operator.>": {"operator"},
    "_INBOX.>": {"operator"},
    ">": set(),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A provisioned server."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()

    async def prepare() -> None:
        link = await NatsLink.connect(server.url, name="test")
        await provision(link, WANT)
        await link.close()

    asyncio.run(prepare())
    yield server
    server.stop()


async def as_role(server: NatsServer, role: Role) -> NatsLink:
    return await NatsLink.connect(
        NatsAccess(urls=server.address, user=role, password=f"pw-{role}"), name=f"test-{role}"
    )


@pytest.mark.parametrize("role", OURS)
async def test_what_a_role_may_publish_and_hear(server: NatsServer, role: Role) -> None:
    link = await as_role(server, role)

    async def may_publish(subject: str) -> bool:
        # a denial must arrive before the time-out; an allowed request need not be answered
        try:
            await client_of(link).request(subject, b"", timeout=0.2 if role in PUBLISHERS[subject] | {A} else 20)
        except Denied:
            return False
        except (TimeoutError, nats.errors.NoRespondersError):
            return True
        return True

    def expected(rights: dict[str, set[Role]]) -> list[str]:
        return [subject for subject, roles in rights.items() if role in roles | {A}]

    try:
        with capture_logs() as lines:
            assert [subject for subject in PUBLISHERS if await may_publish(subject)] == expected(PUBLISHERS)
            for subject in LISTENERS:
                await client_of(link).subscribe(subject)
            if role != A:  # the server denies the last one to every other role
                await eventually(lambda: asyncio.sleep(0, lines[-1]["subject"] == ">"))
        denied = [line for line in lines if line["event"] == "nats_denied"]
        heard = [line["subject"] for line in denied if line["operation"] == "subscription"]
        assert [subject for subject in LISTENERS if subject.lower() not in heard] == expected(LISTENERS)
        assert all((line["user"], line["log_level"]) == (role, "error") for line in denied)
        assert role == A or denied
    finally:
        await link.close()


async def test_operator_cannot_put_a_message_into_a_queue(server: NatsServer) -> None:
    """Not even by a push consumer that delivers to a subject of the queue: the server delivers only if a client listens
    to that very subject, and `operator` may not. A message delivered there would take a place in the queue."""
    admin, operator = await as_role(server, "admin"), await as_role(server, "operator")
    try:
        await provision(admin, WANT)
        await admin.entries.put("control", "lanes.clog", b"auto")
        for number, subject in enumerate(("degraded.anisora.x", "lane.anisora.x", "deadline.set.admit.x")):
            with capture_logs() as lines:
                await client_of(operator).subscribe(subject)
                config: dict[str, object] = {"name": f"clog{number}", "deliver_subject": subject, "ack_policy": "none"}
                config |= {"filter_subject": "$KV.control.>", "deliver_policy": "all", "mem_storage": True}
                asked = json.dumps({"stream_name": "KV_control", "config": config}).encode()
                create = f"$JS.API.CONSUMER.CREATE.KV_control.clog{number}.$KV.control.>"
                answer = json.loads((await client_of(operator).request(create, asked, timeout=20)).data)
                assert "error" not in answer, answer
            assert [line["operation"] for line in lines if line["event"] == "nats_denied"] == ["subscription"]
        # a consumer that delivers to its own inbox has delivered: by then the others would have, too
        heard = await client_of(operator).subscribe(client_of(operator).new_inbox())
        config = {"name": "seen", "deliver_subject": heard.subject, "ack_policy": "none", "mem_storage": True}
        asked = json.dumps(
            {"stream_name": "KV_control", "config": config | {"filter_subject": "$KV.control.>"}}
        ).encode()
        await client_of(operator).request("$JS.API.CONSUMER.CREATE.KV_control.seen.$KV.control.>", asked, timeout=20)
        assert (await heard.next_msg(timeout=20)).subject == "$KV.control.lanes.clog"
        for stream in ("DEGRADED", "LANE_ANISORA"):
            assert (await js_of(admin).stream_info(stream)).state.messages == 0
    finally:
        await operator.close()
        await admin.close()


async def test_system_sees_the_server_and_nothing_of_the_product(server: NatsServer) -> None:
    link = await as_role(server, "system")
    try:
        answer = json.loads((await client_of(link).request("$SYS.REQ.SERVER.PING.JSZ", b"{}", timeout=20)).data)
        assert answer["data"]["streams"] > 0
        for subject in (
            "$SYS.REQ.SERVER.X.RELOAD",
            "$SYS.REQ.SERVER.X.KICK",
            "$SYS.REQ.CLAIMS.UPDATE",
            "lane.anisora.t1",
        ):
            with pytest.raises(Denied):
                await client_of(link).request(subject, b"", timeout=20)
    finally:
        await link.close()


async def test_a_denied_call_fails_at_once_and_stores_nothing(server: NatsServer) -> None:
    """A denial is not a time-out, which would be a mere `TransportUnavailable` without a log line."""
    link = await as_role(server, "supervisor")
    try:
        with capture_logs() as lines:
            with pytest.raises(NotAllowed, match=r"denies this user to publish to \$KV\.leader\.degraded"):
                await link.entries.put("leader", "degraded", b"mine")
            with pytest.raises(NotAllowed):
                await link.entries.put("leader", "degraded", b"mine")
        denied = [line for line in lines if line["event"] == "nats_denied"]
        assert len(denied) == 1  # a repeated denial is not logged again
        assert (denied[0]["user"], denied[0]["operation"], denied[0]["subject"]) == (
            "supervisor",
            "publish",
            "$kv.leader.degraded",
        )
        assert "nats.conf" in denied[0]["advice"]
        await link.entries.put(TASKS, "allowed", b"x")  # and the connection goes on
        assert await link.entries.get(TASKS, "allowed") is not None
    finally:
        await link.close()


async def test_a_denied_fetch_is_reported(server: NatsServer) -> None:
    link = await as_role(server, "lane")
    try:
        pull = await link.messages.pull("DEGRADED", "worker")
        with capture_logs() as lines:
            assert await pull.fetch() == []
        assert [line["event"] for line in lines] == ["nats_denied"]
    finally:
        await link.close()


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [
        (None, None, "wants a user and a password: set WARMLANE_NATS_<ROLE>_PASSWORD"),
        ("gateway", "wrong", "rejects the user gateway or its password"),
        ("nobody", "pw-admin", "rejects the user nobody or its password"),
    ],
)
async def test_nobody_gets_in_without_a_password(
    server: NatsServer, user: str | None, password: str | None, expected: str
) -> None:
    with pytest.raises(UnusableServer, match=expected) as refused:
        await NatsLink.connect(NatsAccess(urls=server.address, user=user, password=password), name="x")
    assert password is None or password not in str(refused.value)


async def test_a_password_that_is_no_longer_valid_is_reported(tmp_path: Path) -> None:
    """The server comes back with other passwords: the process keeps trying, and logs once why it cannot connect."""
    server = NatsServer(tmp_path)
    server.start()
    link = await as_role(server, "lane")
    (tmp_path / "other.conf").write_text("jetstream: {}\nauthorization: {user: lane, password: another}")
    try:
        with capture_logs() as lines:
            server.stop()
            server.options = ("-c", str(tmp_path / "other.conf"))  # the last -c counts
            server.start()
            await eventually(lambda: asyncio.sleep(0, [line for line in lines if line["event"] == "nats_refused"]))
        (refused,) = [line for line in lines if line["event"] == "nats_refused"]
        assert "rejects the user lane or its password" in refused["error"]
        assert "pw-lane" not in str(lines)
    finally:
        await link.close()
        server.stop()


def test_without_passwords_the_server_does_not_start(tmp_path: Path) -> None:
    environment = environment_for(None, clean_environment())
    command = [str(find_nats_server()), "-c", str(nats_conf()), "-p", str(free_port()), "-sd", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "WARMLANE_NATS_ADMIN_PASSWORD" in result.stderr


def test_every_bucket_and_role_stands_in_the_configuration() -> None:
    """For a new bucket, the configuration has to give its readers their rights, and to deny purging it."""
    text = nats_conf().read_text()
    for bucket in BUCKETS:
        assert f"CONSUMER.CREATE.KV_{bucket}.>" in text
        assert f"STREAM.PURGE.KV_{bucket}" in text
    for role in get_args(Role):
        assert f"user: {role}, password: ${password_variable(role)}" in text


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_tls_by_a_setting(tmp_path: Path, catalog: Catalog) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "nats").mkdir()
    server = NatsServer(
        tmp_path / "nats", "--tls", "--tlscert", str(tmp_path / "cert.pem"), "--tlskey", str(tmp_path / "key.pem")
    )
    server.start()
    urls = server.address.replace("nats://", "tls://")
    try:
        secure = NatsAccess(urls=urls, user="admin", password="pw-admin", ca=tmp_path / "ca.pem")
        link = await NatsLink.connect(secure, name="test")
        await provision(link, wanted(catalog, keep_s=KEEP_S))
        transport = client_of(link)._transport
        assert transport is not None
        assert isinstance(transport._io_writer.get_extra_info("ssl_object"), ssl.SSLObject)  # type: ignore[attr-defined]
        await link.close()
        untrusting = NatsAccess(urls=urls, user="admin", password="pw-admin")
        with pytest.raises(UnusableServer, match=r"is not trusted .*--nats-ca"):
            await NatsLink.connect(untrusting, name="test")
        (tmp_path / "none.pem").write_text("no certificate")
        wrong = NatsAccess(urls=urls, ca=tmp_path / "none.pem")
        with pytest.raises(UnusableServer, match="holds no certificates"):
            await NatsLink.connect(wrong, name="test")
    finally:
        server.stop()


async def test_a_tls_address_is_never_spoken_to_without_tls(server: NatsServer, tmp_path: Path) -> None:
    """The client sends neither the password nor anything else in the clear to a server that offers no TLS."""
    tls = NatsAccess(urls=server.address.replace("nats://", "tls://"), user="admin", password="pw-admin")
    with pytest.raises(UnusableServer, match="offers no TLS"):
        await NatsLink.connect(tls, name="test")
    (tmp_path / "open.conf").write_text("jetstream: {}")
    anybodys = NatsServer(tmp_path, "-c", str(tmp_path / "open.conf"))  # the last -c counts
    anybodys.start()
    try:
        with pytest.raises(UnusableServer, match="offers no TLS"):
            await NatsLink.connect(NatsAccess(urls=anybodys.address.replace("nats://", "tls://")), name="test")
    finally:
        anybodys.stop()


async def test_no_password_is_sent_to_a_server_without_tls() -> None:
    """Another program listens in the server's place, and asks for a user without TLS."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","auth_required":true,"max_payload":1000000}\r\n')
        while content := await reader.read(4096):
            heard.extend(content)
            writer.write(b"-ERR 'Authorization Violation'\r\n")
        writer.close()

    impostor = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = impostor.sockets[0].getsockname()[1]
    tls = NatsAccess(urls=f"tls://127.0.0.1:{port}", user="admin", password="pw-admin")
    with pytest.raises(UnusableServer, match="offers no TLS"):
        await NatsLink.connect(tls, name="test")
    with pytest.raises(UnusableServer, match="rejects the user"):  # a control: with nats:// it is sent in the clear
        await NatsLink.connect(
            NatsAccess(urls=f"nats://127.0.0.1:{port}", user="admin", password="pw-open"), name="test"
        )
    impostor.close()
    assert b"pw-open" in heard
    assert b"pw-admin" not in heard
