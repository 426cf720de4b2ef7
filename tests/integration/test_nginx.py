"""The configuration of docs/operate/behind-nginx.md, in a real nginx in front of a real gateway."""

import asyncio
import contextlib
import re
import shlex
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import msgspec
import pytest
import trustme

from contracts.api.problems import Problem
from contracts.keys import Presented
from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.topology import DEGRADED
from gateway.http.body import MAX_BODY_BYTES
from gateway.server.connections import Connections, http_config
from gateway.server.limits import Limits
from ops.commands.api.client import CommandClient
from ops.nats.api_keys import add
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.event_source import EventSource
from tests.kit.gateway import MODELS, GatewayProcess, System, warm_lanes
from tests.kit.patient import connected
from tests.kit.played import CONTENT, finished
from tests.kit.support import BOUND_S, KEEP_S, eventually, eventually_sync, free_port
from tests.kit.tools import tool

PAGE: Final = Path(__file__).parents[2] / "docs" / "operate" / "behind-nginx.md"
CONFIGURATION: Final = re.findall(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
# The page's options for the gateway.
OPTIONS: Final = shlex.split(re.findall(r"^warmlane up (.*)$", PAGE.read_text(), re.MULTILINE)[0])
NAME: Final = "video.example.org"
FRAME: Final = """
daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include {site};
}}
"""


class Nginx:
    """An nginx with the page's configuration, run by the tests' own user, with all its files in *folder*."""

    def __init__(self, folder: Path, gateway_port: int) -> None:
        program = tool("nginx")
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}/warmlane"
        self.ca = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        issued = authority.issue_cert("127.0.0.1", NAME)
        issued.private_key_pem.write_to_path(folder / "key.pem")
        issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        site = CONFIGURATION
        for here, there in (
            ("server 127.0.0.1:8000;", f"server 127.0.0.1:{gateway_port};"),
            ("    listen 443 ", f"    listen 127.0.0.1:{self.port} "),
            ("/etc/ssl/video.example.org.pem", str(folder / "cert.pem")),
            ("/etc/ssl/private/video.example.org.key", str(folder / "key.pem")),
        ):
            assert site.count(here) == 1, here
            site = site.replace(here, there)
        (folder / "warmlane.conf").write_text(site)
        (folder / "nginx.conf").write_text(FRAME.format(site=folder / "warmlane.conf"))
        self._log = folder / "nginx.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"], stdout=log, stderr=log
            )
        eventually_sync(self._answers)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def client(self, key: Presented | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key.text}"}
        return httpx.AsyncClient(base_url=self.url, verify=self.trust(), timeout=BOUND_S, headers=headers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", verify=self.trust(), timeout=BOUND_S).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(BOUND_S)


class Site:
    def __init__(self, gateway: GatewayProcess, nginx: Nginx) -> None:
        self.gateway, self.nginx = gateway, nginx
        self.key: Presented

    async def warm(self) -> None:
        """Reports warm lanes again; returns when the gateway knows. A report counts for a minute."""
        link = await connected(self.gateway.nats.url)
        await warm_lanes(link, self.gateway)
        await link.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    with contextlib.ExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()

        async def on_nats(*, with_key: bool) -> Presented | None:
            link = await connected(gateway.nats.url)
            await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
            made = await add(link, "alice", ("submit", "read"), now=datetime.now(UTC)) if with_key else None
            await link.close()
            return made

        asyncio.run(on_nats(with_key=False))
        gateway.start("--keep", f"{KEEP_S:g}s", *OPTIONS)
        leave.callback(gateway.stop)
        nginx = Nginx(tmp_path_factory.mktemp("nginx"), gateway.port)
        leave.callback(nginx.stop)
        found = Site(gateway, nginx)
        # without a key: the gateway only lets in clients on this machine that address it by a loopback name
        answers = [
            httpx.get(f"{nginx.url}/tasks", verify=nginx.trust(), headers=headers, timeout=BOUND_S)
            for headers in ({"host": NAME}, {"host": f"{NAME}:443"}, {"host": "127.0.0.1"})
        ]
        assert [answer.status_code for answer in answers] == [403, 403, 200]
        assert answers[0].json()["code"] == "foreign_host"
        made = asyncio.run(on_nats(with_key=True))
        assert made is not None
        found.key = made
        eventually_sync(lambda: httpx.get(f"{gateway.url}/tasks", timeout=BOUND_S).status_code == 401)
        yield found


async def submitted(site: Site, http: httpx.AsyncClient) -> httpx.Response:
    await site.warm()
    answer = await http.post("/generate", json={"model": "anisora", "prompt": "x"})
    assert answer.status_code == 202, answer.text
    return answer


async def test_every_address_leads_back_through_nginx(site: Site) -> None:
    async with (
        site.nginx.client(site.key) as http,
        httpx.AsyncClient(verify=site.nginx.trust(), timeout=BOUND_S) as anywhere,
    ):
        answer = await submitted(site, http)
        url = f"/warmlane/tasks/{answer.json()['id']}"
        assert answer.headers["location"] == url
        links = answer.json()["links"]
        assert links == {"self": url, "events": f"{url}/events", "video": None, "thumbnail": None, "cancel": url}
        address = answer.url.join(answer.headers["location"])  # as RFC 9110 has it
        authorized = {"authorization": f"Bearer {site.key.text}"}
        shown = await anywhere.get(address, headers=authorized)
        assert shown.json()["links"]["self"] == url
        page = (await http.get("/tasks", params={"limit": 1})).json()
        assert page["tasks"][0]["links"]["self"] == url
        refused = await http.get(f"/tasks/{answer.json()['id']}/video")
        assert f"GET {url}?wait=60" in refused.json()["detail"]
        request_id = refused.headers["x-request-id"]

        async def line() -> str:
            return next((each for each in site.gateway.log().splitlines() if f'"{request_id}"' in each), "")

        logged = await eventually(line)
        assert re.fullmatch("[0-9a-f]{32}", request_id)  # nginx's
        assert f'"path": "/tasks/{answer.json()["id"]}/video"' in logged
        cancelled = await anywhere.delete(answer.url.join(shown.json()["links"]["cancel"]), headers=authorized)
        assert cancelled.json()["status"] == "failed"

        docs = await anywhere.get(f"{site.nginx.url}/docs")
        assets = re.findall(r"(?:src|href)=[\"']([^\"']+)", docs.text)
        assert len(assets) == 4
        for asset in assets:
            assert (await anywhere.get(docs.url.join(asset))).status_code == 200, asset
        panel = await anywhere.get(f"{site.nginx.url}/", headers={"accept": "text/html"})
        assert '<base href="/warmlane/">' in panel.text
        files = re.findall(r'(?:src|href)="(panel/[^"]+)"', panel.text)
        assert len(files) > 2
        for file in files:
            assert (await anywhere.get(f"{site.nginx.url}/{file}")).status_code == 200, file
        for document in ("/openapi.json", "/docs/openapi.json"):
            assert (await http.get(document)).json()["servers"] == [{"url": "/warmlane"}]
        assert '"servers":[{"url":"/warmlane"}]' in docs.text

        # without nginx: paths have no prefix, and the gateway ignores the headers of an untrusted address
        direct = await anywhere.get(f"{site.gateway.url}/tasks?limit=1", headers=authorized)
        assert direct.json()["tasks"][0]["links"]["self"] == url.removeprefix("/warmlane")

    with CommandClient(site.nginx.url, key=site.key, ca=site.nginx.ca) as client:
        assert {model.name for model in client.settings().models} >= set(MODELS)


async def test_events_and_ranges_pass(site: Site) -> None:
    link = await connected(site.gateway.nats.url)
    source, seen = EventSource(), []
    async with site.nginx.client(site.key) as http:
        task = (await submitted(site, http)).json()
        async with http.stream("GET", f"/tasks/{task['id']}/events") as stream:
            async for piece in stream.aiter_bytes():
                for message in source.read(piece):
                    seen.append(message.data)
                    if len(seen) == 1:  # it came before the end of the stream: nginx holds nothing back
                        await finished(link, site.gateway, task["id"])
        assert [re.findall(r'"status":"(\w+)"', data)[0] for data in seen] == ["pending", "processing", "done"]

        url = f"/tasks/{task['id']}/video"
        whole = await http.get(url)
        assert whole.content == CONTENT
        for wanted_range, part in (("bytes=5-9", CONTENT[5:10]), ("bytes=-7", CONTENT[-7:]), ("bytes=0-", CONTENT)):
            ranged = await http.get(url, headers={"range": wanted_range, "if-range": whole.headers["etag"]})
            assert (ranged.status_code, ranged.content) == (206, part)
            assert ranged.headers["content-range"].endswith(f"/{len(CONTENT)}")
        beyond = await http.get(url, headers={"range": f"bytes={len(CONTENT)}-"})
        assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
        head = await http.head(url)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
        assert (await http.get(url, headers={"if-none-match": whole.headers["etag"]})).status_code == 304
    await link.close()


async def test_a_caller_who_hangs_up_gives_the_place_back(site: Site) -> None:
    link = await connected(site.gateway.nats.url)
    # so the request is held until a degraded worker has it
    async with httpx.AsyncClient(base_url=site.gateway.url, timeout=BOUND_S) as direct:
        await System(site.gateway, link, direct).lane_is(LaneState.DRAINING, model="phr00t")

    async def waiting() -> int:
        return (await js_of(link).stream_info(DEGRADED)).state.messages

    async def free() -> bool:
        return not await waiting()

    async with site.nginx.client(site.key) as http:
        held = asyncio.create_task(http.post("/generate", json={"model": "phr00t", "prompt": "x"}))
        assert await eventually(waiting) == 1
        held.cancel()
        await eventually(free)
    await link.close()


async def test_a_large_body_is_refused_by_the_gateway(site: Site) -> None:
    async with site.nginx.client(site.key) as http:
        answer = await http.post(
            "/generate", content=b" " * (MAX_BODY_BYTES + 1), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_nginx_lets_idle_connections_go_first() -> None:
    """Otherwise a request could use a connection that the gateway is closing."""
    (idle_s,) = re.findall(r"keepalive_timeout (\d+)s;", CONFIGURATION)
    assert int(idle_s) < http_config(None, Connections(Limits())).timeout_keep_alive


async def test_a_gateway_that_is_away(site: Site) -> None:
    """This is the last test, because the gateway ends. `EventSource` reconnects after a broken connection, and never
    after an error."""
    nobody = site.gateway
    nobody.stop()
    try:
        async with site.nginx.client(site.key) as http:
            answer = await http.get("/tasks")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert answer.headers["content-type"] == "application/problem+json"
            problem = msgspec.json.decode(answer.content, type=Problem, strict=True)
            assert (problem.status, problem.code, problem.retry_after_s) == (503, "transport_unavailable", 2.0)
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/tasks/x/events", headers={"accept": "text/event-stream"})
    finally:
        nobody.start("--keep", f"{KEEP_S:g}s", *OPTIONS)
