"""`warmlane up`: how it starts, what it refuses, and that it leaves nothing behind."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from contracts.topology import CONTROL, FALLBACKS, KEYS, LANES, LEADER, SLOTS, TASKS, bucket_stream
from ops.nats.access import environment_for
from ops.nats.link import NatsLink
from tests.kit import warm_cli
from tests.kit.behind import js_of
from tests.kit.small_disk import small_disk
from tests.kit.support import (
    BOUND_S,
    all_end,
    children_of,
    clean_environment,
    command_line,
    eventually,
    eventually_sync,
    fork_servers_of,
    free_port,
    is_running,
    shared_forks,
)
from tests.kit.system import UpProcess


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return warm_cli.run(*arguments, env=clean_environment())


@pytest.fixture(scope="module")
def phr00t_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """One lane; the degraded worker serves the other model. The system imports torch for itself, so two tests share it;
    the second one ends it."""
    up = UpProcess(tmp_path_factory.mktemp("phr00t"), "--lanes", "phr00t=1", "--step-seconds", "0.4")
    up.start()
    yield up
    up.stop()


def test_a_killed_supervisor_drains_its_lanes_and_is_started_again(phr00t_only: UpProcess) -> None:
    """Its lanes drain: they finish the task in hand. `up` restarts the supervisor, which restarts the lane.

    The fork server that all workers share dies before. No process of the workers dies with it. A lane that starts while
    no fork server answers there gets one of its own.
    """
    up = phr00t_only
    forks = str(up.data_dir / "forks")
    for worker in ("phr00t-0", "degraded-0"):
        assert [line["shared"] for line in up.log_lines(worker) if line["event"] == "fork_server_started"] == [forks]
    servers = [fork_servers_of(up.logs / f"{worker}.log")[-1] for worker in ("phr00t-0", "degraded-0")]
    (shared,) = {psutil.Process(server).ppid() for server in servers}
    assert psutil.Process(shared).ppid() == up.pid
    supervisor = up.find("warmlane supervisor")
    lanes = [*children_of(supervisor), servers[0], up.host_of("phr00t-0")]
    task = up.submit(model="phr00t", num_frames=9)
    up.runs(task["id"])
    os.kill(shared, signal.SIGKILL)
    assert all(is_running(pid) for pid in lanes)
    os.kill(supervisor, signal.SIGKILL)
    all_end(lanes)
    done = up.ended(task["id"])
    assert (done["status"], done["attempt"]) == ("done", 1)
    eventually_sync(up.is_ready, within_s=60)
    assert up.find("--name phr00t-0") not in lanes
    said = up.output.read_text()
    assert "supervisor ended (signal 9)" in said
    assert "fork-server ended (signal 9); again in" in said
    eventually_sync(Path(forks).is_socket)  # it is there again for the next worker
    assert all(is_running(pid) for pid in (servers[1], up.host_of("degraded-0")))


def test_ctrl_c_finishes_the_task_in_hand_and_kill_9_takes_everything_with_it(phr00t_only: UpProcess) -> None:
    """Neither of the two leaves a process behind."""
    up = phr00t_only
    # the first is answered when the degraded worker has taken it: in the other order, the lane's task might end before
    tasks = [up.submit(model="anisora", num_frames=9), up.submit(model="phr00t", num_frames=9)]
    for task in reversed(tasks):  # the shorter one first
        up.runs(task["id"])
    assert [up.task(task["id"])["worker"] for task in tasks] == ["degraded-0", "phr00t-0"]
    below = up.below()
    # server, gateway, supervisor, shared fork server, two workers, each with a fork server and a host
    assert len(below) >= 10
    assert up.interrupt() == 0
    assert [pid for pid in below if is_running(pid)] == []
    assert not list(up.data_dir.glob("forks*"))
    for path in (up.data_dir / "locks").iterdir():
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if a process still holds it
    up.start()  # the same folder and ports again: the system still knows the tasks accepted before
    for task in tasks:
        done = up.ended(task["id"])
        assert (done["status"], done["attempt"]) == ("done", 1)
        assert up.video(task["id"])
    below = up.below()
    os.kill(up.pid, signal.SIGKILL)
    all_end(below)


def test_lanes_denied_and_granted_under_load_fail_no_request(tmp_path: Path) -> None:
    """Two slots for three workers leave at most one lane. The quota chooses which one, and no request fails because of
    that."""
    quota = tmp_path / "quota.json"
    quota.write_text('{"max_lanes": {"phr00t": 1}}')
    behind = ("--root-path", "/warmlane", "--allowed-host", "video.example.org")
    # steps that wait: the load never stops, but leaves the processors to the lanes that start
    options = ("--gpus", "2", "--quota", str(quota), "--step-seconds", "0.1", *behind)
    up = UpProcess(tmp_path, *options, warm=["anisora"], **shared_forks())
    up.start()
    eventually_sync(lambda: "-so phr00t.mp4" in up.output.read_text(), within_s=60)
    said = up.output.read_text()
    assert "open: everybody on this machine or who reaches video.example.org may do everything" in said
    denied = (
        "lane phr00t-0 is capacity_denied: the only slot for lanes is taken; its requests go to the degraded worker"
    )
    assert denied in said
    assert said.index(denied) < said.index("ready in") < said.index("-so anisora.mp4") < said.index("-so phr00t.mp4")
    assert said.index("degraded-0 leads") < said.index("ready in")
    stop, ended = threading.Event(), list[tuple[str, str, str]]()

    def load(model: str) -> None:
        while not stop.is_set():
            task = up.ended(up.submit(model=model, num_frames=9)["id"])
            ended.append((model, task["status"], task["worker"]))

    def served_by(model: str, worker: str, *, since: int = 0) -> bool:
        return any(task[0] == model and task[2] == worker for task in ended[since:])

    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load, model) for model in ("anisora", "phr00t")]
        try:
            eventually_sync(
                lambda: served_by("anisora", "anisora-0") and served_by("phr00t", "degraded-0"), within_s=60
            )
            quota.write_text('{"max_lanes": {"anisora": 0')
            eventually_sync(lambda: "the quota stays as it was" in up.output.read_text())
            quota.write_text('{"max_lanes": {"anisora": 0}}')
            eventually_sync(lambda: served_by("phr00t", "phr00t-0"), within_s=60)
            assert "lane anisora-0 is quota_denied: the quota file allows 0 of anisora" in up.output.read_text()
            since = len(ended)
            quota.write_text('{"max_lanes": {"phr00t": 0}}')
            eventually_sync(lambda: served_by("anisora", "anisora-0", since=since), within_s=60)
            assert "lane phr00t-0 is quota_denied: the quota file allows 0 of phr00t" in up.output.read_text()
        finally:
            stop.set()
    for each in loads:
        each.result()
    assert {task[1] for task in ended} == {"done"}
    listed = httpx.get(f"{up.url}/warmlane/tasks", timeout=BOUND_S).json()["tasks"]
    assert listed[0]["links"]["self"].startswith("/warmlane/tasks/")
    up.stop()


def test_a_full_disk_recovers_when_there_is_room_again(tmp_path: Path) -> None:
    """nats-server alone would refuse every write from then on: `warmlane up` restarts it, and all processes go on."""
    with small_disk(tmp_path / "data" / "nats", mib=48) as disk:
        storage = {"WARMLANE_NATS_STORAGE": "100MB"}
        up = UpProcess(tmp_path, "--lanes", "anisora=0,phr00t=0", **shared_forks(), **storage)
        up.start()
        # not the pipeline hosts: a degraded worker that cannot write until its leadership expires starts new ones
        own = [pid for pid in children_of(up.pid) if "nats-server" not in command_line(pid)]
        disk.fill()

        def says(text: str) -> bool:
            # writes: the degraded worker renews its leadership every second, and these requests write too
            up.http.post("/generate", json={"model": "anisora", "prompt": "x"}, headers={"prefer": "respond-async"})
            return text in up.output.read_text()

        eventually_sync(lambda: says("nats-server cannot write"))
        disk.empty()
        eventually_sync(lambda: says("restarting it"))
        eventually_sync(up.is_ready)
        done = up.ended(up.submit(num_frames=9)["id"])
        assert done["status"] == "done"
        assert [command_line(pid) for pid in own if not is_running(pid)] == []
        assert up.interrupt() == 0


def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        for option, other in (("--port", "--nats-port"), ("--nats-port", "--port")):
            result = run("up", option, taken, other, str(free_port()), "--data-dir", str(tmp_path / "data"))
            assert result.returncode == 1
            assert f"port {taken} on 127.0.0.1 is taken" in result.stderr
            assert option in result.stderr


def test_a_data_folder_has_one_up_at_a_time(system: UpProcess) -> None:
    result = run("up", "--port", str(free_port()), "--nats-port", str(free_port()), "--data-dir", str(system.data_dir))
    assert result.returncode == 1
    assert "another `warmlane up` uses" in result.stderr
    # its store is in use on any port
    result = run("nats-server", "--nats-port", str(free_port()), "--data-dir", str(system.data_dir))
    assert (result.returncode, f"is in use by `warmlane up` (pid {system.pid}" in result.stderr) == (1, True)
    ports = ["--port", str(system.port), "--nats-port", str(system.nats_port)]
    # with the password in its folder, and not with that of the servers under test
    environment = environment_for(None, clean_environment())
    result = warm_cli.run("doctor", "--data-dir", str(system.data_dir), *ports, env=environment)
    assert (result.returncode, f"running: `warmlane up` (pid {system.pid}" in result.stdout) == (0, True), result.stdout


def test_a_slot_has_one_lane_at_a_time(system: UpProcess) -> None:
    """Design §7: the lock, and not the server, keeps two pipelines off one card. A second lane is refused before it
    waits for the lock, and does not count as a cold start."""
    options = ["--nats-url", system.nats_url, "--data-dir", str(system.data_dir)]
    result = run("lane", "--model", "phr00t", "--name", "intruder", "--slot", "cpu-0", *options)
    assert result.returncode == 1
    process = f"process {system.find('--name anisora-0')} on host {socket.gethostname()}"
    assert f"slot cpu-0 has a lane: anisora-0, {process}, since" in result.stderr
    assert "intruder" not in system.http.get("/admin/cold_starts").text + system.http.get("/admin/lanes").text


async def test_every_reader_of_a_bucket_outlives_its_consumer_while_tasks_run(system: UpProcess) -> None:
    """Twice, the test deletes the consumers of gateway, supervisor, lanes and degraded worker, all at once. Each reader
    makes a new one, and no task is lost or runs twice."""
    link = await NatsLink.connect(system.nats_url, name="test")
    streams = [bucket_stream(bucket) for bucket in (CONTROL, FALLBACKS, KEYS, LANES, LEADER, SLOTS, TASKS)]

    async def readers() -> dict[str, set[str]]:
        # a consumer without a listener was left by a reader that made a new one, and soon expires
        return {
            stream: {each.name for each in await js_of(link).consumers_info(stream) if each.push_bound}
            for stream in streams
        }

    async def healed(before: dict[str, set[str]]) -> bool:
        now = await readers()
        return all(len(now[stream]) >= len(before[stream]) and not now[stream] & before[stream] for stream in streams)

    at_first, tasks = await readers(), []
    assert all(at_first.values())
    for model in ("anisora", "phr00t"):
        tasks.append(await asyncio.to_thread(system.submit, model=model))
        before = await readers()
        for stream in streams:
            for name in before[stream]:
                await js_of(link).delete_consumer(stream, name)
        tasks.append(await asyncio.to_thread(system.submit, model=model))
        await eventually(partial(healed, before))
    # each of them sees again what it follows
    mode = {"mode": "degraded"}
    assert system.http.put("/admin/lanes/anisora/mode", json=mode).is_success
    tasks.append(await asyncio.to_thread(system.submit, model="anisora"))
    assert tasks[-1]["route"] == "degraded"
    assert system.http.put("/admin/lanes/anisora/mode", json={"mode": "auto"}).is_success
    ended = [await asyncio.to_thread(system.ended, task["id"]) for task in tasks]
    assert [(task["status"], task["attempt"]) for task in ended] == [("done", 1)] * len(tasks)
    assert system.http.get("/readyz").json()["troubles"] == []
    await link.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up", "--host", "no such host"], "neither an address nor a name"),
        (["up", "--host", "203.0.113.7"], "203.0.113.7 is not an address of this machine"),
        (["up", "--port", "8123", "--nats-port", "8123"], "--port and --nats-port are both 8123"),
        (["doctor", "--port", "8123", "--nats-port", "8123"], "--port and --nats-port are both 8123"),
        (["gateway", "--host", "203.0.113.7"], "203.0.113.7 is not an address of this machine"),
        (["up", "--cors-origin", "*"], "is not an origin"),
        (["up", "--root-path", "warmlane"], "not a path such as /warmlane"),
        (["up", "--tls-cert", "pyproject.toml"], "--tls-key is missing"),
        (["up", "--lanes", "sora=1"], "no model is called sora"),
        (["up", "--lanes", "anisora"], "MODEL=COUNT"),
        (["up", "--gpus", "0"], "0 is not in the range"),
        (["up", "--quota", "pyproject.toml"], "the quota file"),
        (["up", "--standbys", "many"], "not a valid integer"),
        (["up", "--keep", "soon"], "not a time such as"),
        (["up", "--profile", "huge"], "no profile 'huge'"),
        (["lane", "--model", "anisora", "--slot", "../x"], "not a slot"),
        (["lane", "--model", "anisora", "--name", "a.b"], "not usable in a subject"),
        (["degraded", "--slot", "../x"], "not a slot"),
        (["degraded", "--slot", "cpu.0 "], "not a slot"),
    ],
)
def test_impossible_arguments_are_refused_with_the_reason(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = run(*arguments, "--data-dir", str(tmp_path / "data"))
    assert result.returncode in (1, 2)
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_settings_file_with_a_mistake_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"schema": 1, "windows": {}}')
    result = run("up", "--settings", str(path), "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 1
    assert str(path) in result.stderr
    assert "$.windows" in result.stderr


def test_a_server_program_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    environment = clean_environment() | {"WARMLANE_NATS_SERVER": str(tmp_path / "missing")}
    result = warm_cli.run("up", "--data-dir", str(tmp_path / "data"), env=environment)
    assert result.returncode == 1
    assert "correct or unset it" in result.stderr
