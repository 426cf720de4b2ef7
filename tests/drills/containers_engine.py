"""A copy of this checkout on a container engine, for `make containers`, through `docker` and its Compose."""

import io
import json
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = "warmlane-drill"
TAG: Final = "drill"
"""The tag of the images that the drill builds, so that a system beside it keeps its own."""
READY_WITHIN_S: Final = 900
# In a container, kills the process of `warmlane` whose command line has all of the words, and not the init.
KILL: Final = """
import os, pathlib, signal
for place in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (place / "cmdline").read_text(errors="replace").split(chr(0))
    except OSError:  # it has ended
        continue
    is_ours = any(word.endswith("/warmlane") for word in words) and set({words!r}) <= set(words)
    if is_ours and place.name != "1":
        os.kill(int(place.name), signal.SIGKILL)
        break
else:
    raise SystemExit("no process of warmlane")
"""


class Finding(Struct, frozen=True):
    """One thing that was tried: what was measured, and whether it was as it should be."""

    what: str
    measured: str
    is_good: bool = True


class Engine:
    """The project of the drill. Every method raises click.ClickException where the engine refuses."""

    def __init__(self, docker: list[str], folder: Path, inside: str) -> None:
        """*folder* is the copy as this process sees it, *inside* as the engine does."""
        self._docker, self.folder, self._inside = docker, folder, inside
        self.files = ["compose.yaml", "compose.override.yaml"]
        """The files that Compose reads, if they are in *folder*."""

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What `docker ARGUMENTS` prints. With *check*, the command has to succeed."""
        done = subprocess.run([*self._docker, *arguments], capture_output=True, check=False)
        if check and done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace")
            raise click.ClickException(f"docker {shlex.join(arguments)} ended with {done.returncode}:\n{said[-3000:]}")
        return done.stdout.decode(errors="replace")

    def compose(self, *arguments: str, check: bool = True) -> str:
        """What `docker compose ARGUMENTS` prints."""
        here = ["compose", "--project-name", PROJECT, "--project-directory", self._inside]
        there = [name for name in self.files if (self.folder / name).exists()]
        named = [word for name in there for word in ("--file", f"{self._inside}/{name}")]
        return self.docker(*here, *named, *arguments, check=check)

    def up(self) -> float:
        """Runs `up --detach --wait`; returns how long that took, in seconds."""
        return timed(lambda: self.compose("up", "--detach", "--wait", "--wait-timeout", str(READY_WITHIN_S)))

    def containers(self) -> dict[str, str]:
        """The id of each service's running container."""
        lines = self.compose("ps", "--format", "json").splitlines()
        return {each["Service"]: each["ID"] for each in map(json.loads, lines)}

    def container(self, service: str) -> dict[str, Any]:
        """What the engine reports of the container of *service*."""
        found: dict[str, Any] = json.loads(self.docker("inspect", f"{PROJECT}-{service}-1"))[0]
        return found

    def started_at(self, service: str) -> str:
        """When the container of *service* was started last; empty while it does not run."""
        state = self.container(service)["State"]
        return str(state["StartedAt"]) if state["Running"] else ""

    def python(self, service: str, program: str, *, check: bool = True) -> str:
        """What *program* prints in the container of *service*."""
        return self.compose("exec", "-T", service, "python", "-c", program, check=check).strip()

    def image(self, name: str) -> dict[str, Any]:
        """What the engine reports of the image warmlane-*name*."""
        found: dict[str, Any] = json.loads(self.docker("image", "inspect", f"warmlane-{name}:{TAG}"))[0]
        return found

    def own_layer_bytes(self, name: str) -> int:
        """The size of the layer with our own packages in the image warmlane-*name*."""
        form = ["--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}"]
        lines = self.docker("history", *form, f"warmlane-{name}:{TAG}").splitlines()
        return next(int(line.split()[0]) for line in lines if "/ours" in line)

    def first_key(self) -> str:
        """The API key that `provision` made, copied out of its container."""
        source = f"{PROJECT}-provision-1:/data/keys/first.key"
        done = subprocess.run([*self._docker, "cp", source, "-"], capture_output=True, check=False)
        if done.returncode:
            raise click.ClickException(f"docker cp {source}: {done.stderr.decode(errors='replace')}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            file = archive.extractfile("first.key")
            assert file is not None
            return file.read().decode().strip()

    def admin(self, key: str, *arguments: str) -> float:
        """Runs `docker compose run --rm admin ARGUMENTS` with the API key *key*; returns how long that took, in
        seconds."""
        run = ["run", "--rm", "--env", f"WARMLANE_API_KEY={key}", "admin"]
        return timed(lambda: self.compose(*run, *arguments))

    def down(self) -> None:
        """Removes containers, networks and volumes of the project; the images stay. It prints what it could not remove,
        and raises nothing, so as not to hide an earlier error."""
        try:
            self.compose("--profile", "*", "down", "--volumes", "--timeout", "60")
        except click.ClickException as error:
            click.echo(f"not removed: {error.message}", err=True)


def timed(act: Callable[[], object]) -> float:
    """How long *act* takes, in seconds."""
    begun_s = time.monotonic()
    act()
    return time.monotonic() - begun_s


def until(what: str, is_so: Callable[[], object], *, within_s: float = 300.0) -> float:
    """Waits until *is_so*; returns how long that took, in seconds. Raises click.ClickException with *what* it waited
    for."""
    begun_s = time.monotonic()
    while not is_so():
        if time.monotonic() - begun_s > within_s:
            raise click.ClickException(f"not within {within_s:g} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - begun_s


def copied(folder: Path, *, port: int, network: str) -> None:
    """Puts this checkout's commit into *folder*, with tags of the drill's own, random passwords, *port* for the gateway
    and, unless it is empty, *network* for builds."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    compose = folder / "compose.yaml"
    compose.write_text(tagged(compose.read_text()))
    with (folder / ".env").open("w") as env:
        env.write(f"WARMLANE_PORT={port}\n")
    subprocess.run(["sh", "ops/deploy/new-env.sh"], cwd=folder, capture_output=True, check=True)
    if network:
        builds = "".join(
            f"  {name}:\n    build: {{network: {network}}}\n" for name in ("provision", "degraded", "nats")
        )
        (folder / "compose.override.yaml").write_text(f"services:\n{builds}")


def tagged(text: str) -> str:
    """compose.yaml with TAG in place of the version in the names of our own images, and nothing else changed."""
    return "\n".join(
        line.rpartition(":")[0] + f":{TAG}" if line.lstrip().startswith("image: warmlane-") else line
        for line in text.split("\n")
    )
