"""`make services`: the units of ops/deploy/systemd, run by a real systemd as the first process of a Debian of its own.

It needs root, and debootstrap for the Debian (a minute, once). That Debian has namespaces of its own for processes,
mounts, network and control groups, so that nothing of it shows outside. Every figure comes from outside the judged
processes: from systemd, or from a client.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

ROOT: Final = Path(__file__).parents[2]
UNITS: Final = ROOT / "ops" / "deploy" / "systemd"
# The Debian that has the Python of this environment, whose packages are used there.
SUITES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
PACKAGES: Final = "systemd,systemd-sysv,dbus,python3,ca-certificates,procps,iproute2"
WITHIN_S: Final = 180.0
PARTS: Final = (
    "warmlane-nats",
    "warmlane-gateway",
    "warmlane-lane@anisora-0",
    "warmlane-lane@phr00t-0",
    "warmlane-degraded@degraded-0",
    "warmlane-degraded@degraded-1",
)
_BOOT: Final = """
set -e
mount --make-rprivate /
mount --bind "$R" "$R"
mkdir -p "$R/old" "$R/srv/checkout"
mount --bind "$C" "$R/srv/checkout"
mount -o remount,ro,bind "$R/srv/checkout"
mount -t proc proc "$R/proc"
mount -t sysfs -o ro sysfs "$R/sys"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$R/sys/fs/cgroup"
    mkdir "$R/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$R/sys/fs/cgroup/systemd"
fi
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for each in null zero full random urandom tty; do touch "$R/dev/$each"; mount --bind "/dev/$each" "$R/dev/$each"; done
mkdir "$R/dev/shm" "$R/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$R/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs -o mode=755 tmpfs "$R/run"
mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
ip link set lo up
cd "$R"
pivot_root . old
cd /
umount -l /old
# credentials are mounted by a helper of systemd's, from which they have to come through
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=console
"""


class CannotRun(Exception):
    """This machine cannot run the drill. The text says why."""


class Machine:
    """A Debian in *folder* whose first process is systemd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first = 0

    def make(self) -> None:
        """Installs Debian, unless an earlier run did, and Warmlane out of this checkout. Raises CannotRun."""
        suite = SUITES.get(sys.version_info[:2])
        if os.geteuid() != 0:
            raise CannotRun("only root can make a machine of its own")
        if suite is None:
            raise CannotRun(f"no Debian has Python {sys.version_info[0]}.{sys.version_info[1]}")
        missing = [name for name in ("debootstrap", "unshare", "nsenter", "ip") if shutil.which(name) is None]
        if missing:
            raise CannotRun(f"{', '.join(missing)} is not installed: apt install debootstrap util-linux iproute2")
        if not (self.folder / "usr/lib/systemd/systemd").exists():
            click.echo(f"installing Debian {suite} in {self.folder}")
            made = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, self.folder, *_mirror()],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                raise CannotRun(f"debootstrap failed: {made.stdout[-300:]}{made.stderr[-300:]}")
        self._install()

    def _install(self) -> None:
        for name in ("var/lib/warmlane", "var/cache/warmlane", "usr/local/lib/warmlane", "var/log/journal"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for old in [*(self.folder / "etc/systemd/system").rglob("warmlane*")]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        program = self.folder / "usr/local/lib/warmlane/bin"
        program.mkdir(parents=True)
        # an environment of that Debian's own Python, with the packages of this one
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        beside = Path("/srv/checkout", Path(sys.prefix).relative_to(ROOT))
        (program.parent / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        (program / "python3").symlink_to("/usr/bin/python3")
        (program / "nats-server").symlink_to(beside / "bin/nats-server")
        own = program.parent / "lib" / python / "site-packages"
        own.mkdir(parents=True)
        paths = ["/srv/checkout", "/srv/checkout/clients/python/src", str(beside / "lib" / python / "site-packages")]
        (own / "warmlane.pth").write_text("\n".join(paths) + "\n")
        (program / "warmlane").write_text("#!/usr/local/lib/warmlane/bin/python3\nfrom ops.cli import main\nmain()\n")
        (program / "warmlane").chmod(0o755)
        for unit in UNITS.iterdir():
            if unit.suffix in {".service", ".target"}:
                shutil.copy(unit, self.folder / "etc/systemd/system")
        (self.folder / "etc/warmlane").mkdir(exist_ok=True)
        shutil.copy(UNITS / "warmlane.toml", self.folder / "etc/warmlane/warmlane.toml")
        shutil.copy(UNITS / "warmlane.sysusers.conf", self.folder / "usr/lib/sysusers.d/warmlane.conf")

    @contextlib.contextmanager
    def booted(self) -> Iterator[None]:
        """Runs systemd until the block ends. Raises CannotRun when it does not come up."""
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
            "--fork",
            "--kill-child=SIGKILL",
        ]
        with (self.folder.parent / "systemd.log").open("wb") as log:
            unshare = subprocess.Popen(
                [*command, "bash", "-c", _BOOT],
                env=os.environ | {"R": str(self.folder), "C": str(ROOT)},
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                self._first = self._first_process(unshare)
                yield
            finally:
                unshare.kill()
                unshare.wait()

    def _first_process(self, unshare: "subprocess.Popen[bytes]") -> int:
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s and unshare.poll() is None:
            children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
            if children:
                self._first = int(children[0])
                state = self.run("systemctl", "is-system-running", may_fail=True)
                if state in {"running", "degraded"}:
                    return self._first
            time.sleep(0.3)
        raise CannotRun(f"systemd did not come up; {self.folder.parent}/systemd.log says more")

    def run(self, *command: str, may_fail: bool = False) -> str:
        """What *command* prints on that Debian."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._first), "-m", "-p", "-u", "-i", "-n", *command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode and not may_fail:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def warmlane(self, *command: str, may_fail: bool = False) -> str:
        """What `warmlane` prints there as the user of the units."""
        return self.run(
            "runuser", "-u", "warmlane", "--", "/usr/local/lib/warmlane/bin/warmlane", *command, may_fail=may_fail
        )

    def pid(self, unit: str) -> int:
        """The unit's main process, by its number on that Debian."""
        return int(self.run("systemctl", "show", "-P", "MainPID", unit))

    def state(self, unit: str) -> str:
        return self.run("systemctl", "is-active", unit, may_fail=True)

    def when(self, what: str, is_so: Callable[[], bool]) -> float:
        """Waits until *is_so*, and returns how long that took in seconds."""
        began_s = time.monotonic()
        while not is_so():
            if time.monotonic() - began_s > WITHIN_S:
                raise AssertionError(
                    f"not within {WITHIN_S:g} s: {what}\n{self.run('systemctl', 'status', 'warmlane-*', may_fail=True)}"
                )
            time.sleep(0.2)
        return time.monotonic() - began_s


class Step(Struct, frozen=True):
    """What was done, and what was seen."""

    title: str
    seen: str


def drill(there: Machine) -> Iterator[Step]:
    """Tries everything that the page promises, one thing after the other. Raises AssertionError for what fails."""
    there.run("systemd-sysusers")
    there.run("systemctl", "daemon-reload")
    said = there.run("systemd-analyze", "verify", *(f"{part}.service" for part in PARTS), "warmlane.target")
    assert said == "", said
    there.run("systemctl", "enable", "warmlane.target", "warmlane-provision", *PARTS)
    began_s = time.monotonic()
    there.run("systemctl", "start", "warmlane.target")
    assert {there.state(part) for part in PARTS} == {"active"}
    yield Step(
        "systemctl start warmlane.target returns when every part is ready", f"{time.monotonic() - began_s:.0f} s"
    )
    yield Step("a video by each lane", ", ".join(_video(there, model) for model in ("anisora", "phr00t")))
    exposures = [f"{part.removeprefix('warmlane-')} {_exposure(there, part)}" for part in PARTS[:-1]]
    yield Step("systemd-analyze security", ", ".join(exposures))
    yield Step("a lane may not read the admin's password", _cannot_read(there))

    for part, sign in (("warmlane-lane@phr00t-0", "KILL"), ("warmlane-gateway", "KILL"), ("warmlane-nats", "KILL")):
        yield Step(f"kill -{sign} of {part}: it alone is started again, and ready", _killed(there, part))
    _video(there, "anisora")
    yield Step("a video by each lane after that", ", ".join(_video(there, model) for model in ("anisora", "phr00t")))
    before = _pids(there)
    there.run("systemctl", "restart", "warmlane-lane@anisora-0")
    after = _pids(there)
    changed = [part for part in PARTS if before[part] != after[part]]
    assert changed == ["warmlane-lane@anisora-0"], changed
    yield Step("systemctl restart of one lane leaves all others", "only warmlane-lane@anisora-0 has a new process")
    yield Step("a gateway that hangs is started again by the watchdog", _hung(there))
    yield Step("systemctl stop of a lane drains", _drained(there))
    there.run("systemctl", "stop", "warmlane.target")
    there.when("all have left", lambda: {there.state(part) for part in PARTS} <= {"inactive", "failed"})
    states = {there.state(part) for part in PARTS}
    left = there.run("pgrep", "-u", "warmlane", "-a", may_fail=True)
    assert (states, left) == ({"inactive"}, ""), (states, left)
    yield Step("systemctl stop warmlane.target leaves nothing", "every part inactive, none failed, no process")
    core = ("warmlane-nats", "warmlane-provision", "warmlane-gateway")
    there.run("systemctl", "start", "warmlane-supervisor", *core)
    videos = ", ".join(_video(there, model, "--retry", "2m") for model in ("anisora", "phr00t"))
    yield Step("warmlane-supervisor instead of units for lanes", videos)
    there.run("systemctl", "stop", "warmlane-supervisor")
    assert there.run("systemctl", "show", "-P", "Result", "warmlane-supervisor") == "success"
    left = there.run("pgrep", "-u", "warmlane", "-f", "warmlane lane", may_fail=True)
    assert left == "", left
    yield Step("systemctl stop warmlane-supervisor ends its lanes", "result success, no lane left")
    journal = there.run("journalctl", "-u", "warmlane-gateway", "-o", "cat", "--no-pager", may_fail=True)
    yield Step("journalctl -u warmlane-gateway", f"{len(journal.splitlines())} lines")


def _video(there: Machine, model: str, *more: str) -> str:
    said = there.warmlane("submit", model, "a red fox in fresh snow", "--out", f"/tmp/{time.monotonic_ns()}.mp4", *more)
    assert "bytes" in said, said
    return f"{model} {said.splitlines()[-1].partition('  ')[2].partition(' bytes')[0]} bytes"


def _exposure(there: Machine, part: str) -> str:
    said = there.run("systemd-analyze", "security", "--no-pager", f"{part}.service")
    return said.splitlines()[-1].rpartition(": ")[2].split()[0]


def _cannot_read(there: Machine) -> str:
    lane = str(there.pid("warmlane-lane@phr00t-0"))
    # in the lane's mount namespace, as the lane's user
    said = there.run(
        "nsenter", "-t", lane, "-m", "runuser", "-u", "warmlane", "--",
        "cat", "/var/lib/warmlane/nats-auth/admin.json", may_fail=True,
    )  # fmt: skip
    assert said == ""
    return "closed"


def _pids(there: Machine) -> dict[str, int]:
    return {part: there.pid(part) for part in PARTS}


def _killed(there: Machine, part: str) -> str:
    before = _pids(there)
    there.run("kill", "-KILL", str(before[part]))
    took_s = there.when(
        f"{part} runs anew", lambda: there.pid(part) not in (0, before[part]) and there.state(part) == "active"
    )
    after = _pids(there)
    changed = [each for each in PARTS if before[each] != after[each]]
    assert changed == [part], changed
    return f"{took_s:.0f} s"


def _hung(there: Machine) -> str:
    there.run("mkdir", "-p", "/run/systemd/system/warmlane-gateway.service.d")
    there.run(
        "sh", "-c", "printf '[Service]\\nWatchdogSec=4\\n' > /run/systemd/system/warmlane-gateway.service.d/w.conf"
    )
    there.run("systemctl", "daemon-reload")
    there.run("systemctl", "restart", "warmlane-gateway")
    before = there.pid("warmlane-gateway")
    there.run("kill", "-STOP", str(before))
    took_s = there.when(
        "the gateway runs anew",
        lambda: there.pid("warmlane-gateway") not in (0, before) and there.state("warmlane-gateway") == "active",
    )
    there.run("rm", "-r", "/run/systemd/system/warmlane-gateway.service.d")
    there.run("systemctl", "daemon-reload")
    there.run("systemctl", "restart", "warmlane-gateway")
    return f"{took_s:.0f} s with WatchdogSec=4"


def _drained(there: Machine) -> str:
    config = there.folder / "etc/warmlane/warmlane.toml"
    config.write_text(config.read_text().replace("[lane.phr00t-0]", "[lane.phr00t-0]\nstep-seconds = 2"))
    there.run("systemctl", "restart", "warmlane-lane@phr00t-0")
    submitting = subprocess.Popen(
        ["nsenter", "-t", str(there._first), "-m", "-p", "-u", "-i", "-n", "runuser", "-u", "warmlane", "--",
         "/usr/local/lib/warmlane/bin/warmlane", "submit", "phr00t", "a slow one", "--out", "/tmp/slow.mp4"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    there.when("the task runs", lambda: any(each["status"] == "processing" for each in _tasks(there)))
    began_s = time.monotonic()
    there.run("systemctl", "stop", "warmlane-lane@phr00t-0")
    took_s = time.monotonic() - began_s
    said, _ = submitting.communicate(timeout=60)
    assert submitting.returncode == 0, said
    newest = _tasks(there)[0]
    assert newest["status"] == "done", newest
    result = there.run("systemctl", "show", "-P", "Result", "warmlane-lane@phr00t-0")
    assert result == "success", result
    return f"the task in hand was finished, {took_s:.0f} s; its result is {newest['status']}"


def _tasks(there: Machine) -> list[dict[str, Any]]:
    found = json.loads(there.warmlane("tasks", "list", "--limit", "3", "--json"))
    tasks = found["tasks"] if isinstance(found, dict) else found
    assert isinstance(tasks, list)
    return tasks


def _mirror() -> list[str]:
    for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        for word in path.read_text().split() if path.is_file() else ():
            if word.startswith(("http://", "https://")) and word.rstrip("/").endswith("/debian"):
                return [word]
    return []


@click.command()
@click.option(
    "--root",
    "folder",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache/warmlane-systemd/root",
    show_default=True,
)
def main(folder: Path) -> None:
    """Install the units on a Debian of their own, and try them with a real systemd."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    there = Machine(folder.absolute())
    try:
        there.make()
        with there.booted():
            click.echo(there.run("systemctl", "--version").splitlines()[0])
            try:
                for step in drill(there):
                    click.echo(f"ok  {step.title}: {step.seen}")
            except AssertionError:
                click.echo(there.run("journalctl", "--no-pager", "-n", "80", may_fail=True), err=True)
                raise
    except CannotRun as error:
        click.echo(f"skipped: {error}")


if __name__ == "__main__":
    main()
