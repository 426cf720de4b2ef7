"""`make containers`: builds the images, starts `compose.yaml` as it is, and tries what operators do and what can go
wrong, where a container engine is.

It works on a copy of this checkout's commit, with a project, tags and volumes of its own. `DOCKER` is the command of
the engine, `docker` by default. Where the engine sees other paths than this process, CONTAINERS_INSIDE is the path at
which it sees the folder CONTAINERS_FOLDER.
"""

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from tests.drills import containers_profiles as profiles
from tests.drills.containers_engine import KILL, ROOT, TAG, Engine, Finding, copied, timed, until

REPORT: Final = ROOT / "docs" / "operate" / "containers.md"
SMALL_LAYER_BYTES: Final = 20_000_000
IMAGES: Final = ("gateway", "worker-cpu", "nats")
CORE: Final = frozenset({"nats", "gateway", "lane-anisora", "lane-phr00t", "degraded", "degraded-standby"})
# The source that a small change is made in, and the file that git replaces.
SOURCE: Final = "contracts/__init__.py"
CONFIG: Final = "nats.conf"
# different in each run, or the engine would reuse the last run's build
MARK: Final = f"# changed by the drill {uuid.uuid4().hex}\n"
# Runs a lane's container out of memory, without being the largest process in it. It grows in small steps, and then
# stays, so that it holds its memory while the kernel looks for a process to kill.
OOM_LIMIT: Final = "600m"
HOG: Final = """
import time
held = []
for _ in range(30):
    held.append(b"x" * 10_000_000)
    time.sleep(0.05)
time.sleep(5)
"""
LEFT_OUT: Final = """
import importlib.util, os, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
left = [name for name in ("pip",) if importlib.util.find_spec(name)]
left += [name for name in ("torch/test", "torch/include") if os.path.exists(os.path.join(site, name))]
print(torch.__version__, float(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum()), left)
"""
MONITORING: Final = """
import urllib.request
try:
    print(urllib.request.urlopen("http://nats:8222/connz?auth=1&subs=1", timeout=5).status)
except OSError as error:
    print("refused" if "refused" in str(error) else error)
"""
OOM_KILLS: Final = "from ops.machine.cgroup import oom_kills; print(oom_kills())"
READY: Final = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9464/readyz", timeout=5).status)
"""


def drill(engine: Engine) -> Iterator[Finding]:
    """Does all steps, in order. Raises click.ClickException where a step cannot be done at all."""
    yield from _installed(engine)
    key = engine.first_key()
    for model in ("anisora", "phr00t"):
        yield Finding(f"a video of {model}", f"{_video(engine, key, model):.1f} s, with the container of the command")
    yield from _unchanged(engine, key)
    yield from _closed(engine)
    yield from _changed(engine)
    yield from _killed(engine)
    yield from profiles.frozen(engine)
    yield from profiles.configured(engine)
    yield from profiles.unavailable(engine, key)
    yield from _out_of_memory(engine)
    yield Finding("a video after all that", f"{_video(engine, key, 'phr00t'):.1f} s")
    restarted_s = timed(lambda: engine.compose("restart")) + engine.up()
    yield Finding("`restart` of everything", f"ready after {restarted_s:.0f} s")
    yield Finding("a video after that", f"{_video(engine, key, 'anisora'):.1f} s")
    yield from _stopped(engine)
    yield from profiles.supervised(engine)


def _video(engine: Engine, key: str, model: str) -> float:
    return engine.admin(key, "submit", model, "a red fox in fresh snow", "--out", "/tmp/fox.mp4")


def _installed(engine: Engine) -> Iterator[Finding]:
    built_s = timed(lambda: engine.compose("build"))
    sizes = ", ".join(f"{name} {engine.image(name)['Size'] / 1e6:,.0f} MB" for name in IMAGES)
    yield Finding("`docker compose build`", f"{built_s:.0f} s (what was built before is not built again); {sizes}")
    bare = [
        name
        for name in IMAGES
        if not engine.image(name)["Config"].get("Healthcheck")
        or "org.opencontainers.image.title" not in (engine.image(name)["Config"].get("Labels") or {})
    ]
    yield Finding("every image has a health check and labels", f"without: {bare or 'none'}", not bare)
    up_s = engine.up()
    running = engine.containers()
    yield Finding(
        "`up --wait` on a fresh install, without a collector",
        f"{up_s:.1f} s; {len(running)} services ready",
        set(running) == CORE,
    )


def _unchanged(engine: Engine, key: str) -> Iterator[Finding]:
    before = engine.containers()
    again_s = engine.up()
    yield Finding(
        "`up` again without a change", f"{again_s:.1f} s; {_anew(before, engine)}", engine.containers() == before
    )
    took_s = engine.admin(key, "status", "--json")
    yield Finding("a command of an operator", f"{took_s:.1f} s; {_anew(before, engine)}", engine.containers() == before)


def _anew(before: dict[str, str], engine: Engine) -> str:
    after = engine.containers()
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return f"containers made anew: {', '.join(changed) or 'none'}"


def _closed(engine: Engine) -> Iterator[Finding]:
    said = engine.python("lane-anisora", LEFT_OUT)
    yield Finding("torch computes without pip, torch/test and torch/include", said, said.endswith("8.0 []"))
    said = engine.python("lane-anisora", MONITORING)
    yield Finding("a lane asks nats-server for its monitoring", said, said == "refused")
    complaints = noisy(engine.compose("logs", "--no-log-prefix", "--no-color", "gateway"))
    yield Finding(
        "warnings of the gateway, without a collector", f"{len(complaints)}: {complaints[:2] or 'none'}", not complaints
    )


def noisy(log: str) -> list[str]:
    """The lines of *log* that complain of a collector: without one, there is nothing to complain of."""
    return [line for line in log.splitlines() if re.search(r"otlp|otel-collector", line, re.IGNORECASE)]


def _changed(engine: Engine) -> Iterator[Finding]:
    before = engine.image("worker-cpu")["RootFS"]["Layers"]
    with (engine.folder / SOURCE).open("a") as file:
        file.write(MARK)
    rebuilt_s = timed(lambda: engine.compose("build"))
    new = [each for each in engine.image("worker-cpu")["RootFS"]["Layers"] if each not in before]
    ours_bytes = engine.own_layer_bytes("worker-cpu")
    yield Finding(
        "a change of the source",
        f"{rebuilt_s:.1f} s to build all images; of the worker's {engine.image('worker-cpu')['Size'] / 1e9:.2f} GB, "
        f"{len(new)} layer of {ours_bytes / 1e6:.1f} MB is new",
        len(new) == 1 and ours_bytes < SMALL_LAYER_BYTES,
    )
    nats = engine.containers()["nats"]
    with (engine.folder / CONFIG).open("a") as file:
        file.write(MARK)
    engine.compose("build")
    moved_s = engine.up()
    has_it = MARK.strip() in engine.compose("exec", "-T", "nats", "cat", "/etc/warmlane/warmlane.conf")
    yield Finding(
        "a change of `nats.conf`, and `up`",
        f"ready again after {moved_s:.1f} s; in force: {'yes' if has_it else 'no'}",
        has_it and engine.containers()["nats"] != nats,
    )


def _killed(engine: Engine) -> Iterator[Finding]:
    for name in ("lane-anisora", "degraded", "gateway"):
        began = engine.started_at(name)

        def has_begun_anew(name: str = name, began: str = began) -> bool:
            return engine.started_at(name) not in ("", began)

        engine.python(
            name, KILL.format(words=()), check=False
        )  # when its container ends, `exec` may end with an error too
        back_s = until(f"{name} is started again", has_begun_anew)
        ready_s = engine.up()
        yield Finding(f"SIGKILL of {name}", f"started again after {back_s:.1f} s, ready after {ready_s:.1f} s more")


def _out_of_memory(engine: Engine) -> Iterator[Finding]:
    name = "lane-phr00t"
    container = engine.containers()[name]
    restarts = engine.container(name)["RestartCount"]
    engine.docker("update", "--memory", OOM_LIMIT, "--memory-swap", OOM_LIMIT, container)
    try:
        engine.python(name, HOG, check=False)
        kills = engine.python(name, OOM_KILLS)
    finally:
        engine.docker("update", "--memory", "8g", "--memory-swap", "8g", container)
    back_s = until("the lane is ready again", lambda: engine.python(name, READY, check=False) == "200")
    again = engine.container(name)["RestartCount"] - restarts
    said = of_memory(engine.compose("logs", "--no-log-prefix", "--no-color", name))
    yield Finding(
        "a lane without a task reaches its memory limit",
        f"killed by the kernel, by its cgroup's counter: {kills}; ready {back_s:.1f} s after that; its "
        f"container was started again {again} times; its log says of memory: {said or 'nothing'}",
        kills not in ("", "0", "None") and "SIGKILL" in said,
    )


def of_memory(log: str) -> str:
    """What a worker logged in *log* about its container's memory; empty where it logged nothing."""
    found = re.findall(r"[^\"]*memory limit[^\"]*", log)
    return found[-1].strip() if found else ""


def _stopped(engine: Engine) -> Iterator[Finding]:
    for name, grace_s in (("gateway", 20.0), ("lane-anisora", 60.0), ("degraded", 60.0), ("nats", 30.0)):

        def stop(name: str = name) -> str:
            return engine.compose("stop", name)

        stopped_s = timed(stop)
        code = engine.container(name)["State"]["ExitCode"]
        yield Finding(f"`stop` of {name}", f"{stopped_s:.1f} s, exit code {code}", code == 0 and stopped_s < grace_s)


def briefly(message: str) -> str:
    """The first line of *message* and the last, which is the most telling one of an engine."""
    first, *rest = message.strip().splitlines() or ["no reason given"]
    return " … ".join([first, *rest[-1:]])


def page(found: Sequence[Finding], *, engine: str, machine: str) -> str:
    """The report: docs/operate/containers.md."""
    rows = [
        f"| {each.what} | {each.measured.replace('|', '/')} | {'yes' if each.is_good else '**no**'} |" for each in found
    ]
    return "\n".join(
        [
            "# What a container engine did with compose.yaml",
            "",
            f"`make containers` wrote this page, with {engine}, on {machine}. It builds the images from what",
            "git has, starts the profile `cpu`, and tries what operators do and what can go wrong. Then it starts",
            "the profile `supervised`.",
            "[deploy.md](deploy.md#what-was-tried-and-what-was-not) says what it does not try.",
            "",
            "| tried | measured | as it should be |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


@click.command(epilog="Examples:\n\n  make containers\n\n  DOCKER=podman make containers")
@click.option(
    "--network", default="", help="The network of builds, as `host`, where the engine's own reaches no index."
)
@click.option("--port", default=18000, show_default=True, help="Where the gateway is published, on the loopback.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=REPORT, help="Where the report goes.")
@click.option("--keep", is_flag=True, help="Leave containers and volumes as they are at the end.")
def main(network: str, port: int, out: Path, keep: bool) -> None:
    """Build and drill compose.yaml on the container engine of this machine; the images stay, with the tag `drill`."""
    docker = shlex.split(os.environ.get("DOCKER", "docker"))
    if shutil.which(docker[0]) is None:
        click.echo(f"skipped: there is no {docker[0]} here; DOCKER names another command")
        return
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("CONTAINERS_FOLDER", scratch))
        engine = Engine(docker, folder, os.environ.get("CONTAINERS_INSIDE", str(folder)))
        load_before = os.getloadavg()[0]
        version = json.loads(engine.docker("version", "--format", "json"))["Server"]["Version"]
        composer = engine.docker("compose", "version", "--short").strip()
        copied(folder, port=port, network=network)
        try:
            for each in drill(engine):
                found.append(each)
                click.echo(f"{'ok ' if each.is_good else 'BAD'} {each.what}: {each.measured}")
        except click.ClickException as error:
            click.echo(f"BAD {error.message}")
            found.append(Finding("the next step, after which nothing was tried", briefly(error.message), is_good=False))
        finally:
            if not keep:
                engine.down()
    load = f"load average {load_before:.0f} before, {os.getloadavg()[0]:.0f} at the end"
    machine = f"a machine of {os.cpu_count()} processors ({load})"
    out.write_text(page(found, engine=f"engine {version} and Compose {composer}", machine=machine))
    click.echo(f"{out} has the report; the images have the tag {TAG}")
    sys.exit(any(not each.is_good for each in found))


if __name__ == "__main__":
    main()
