"""A cluster with the chart on it, and clients inside it, as `make kubernetes` uses them."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.kit.support import eventually_sync

CHART: Final = Path(__file__).parents[2] / "ops" / "kubernetes" / "warmlane"
LOAD: Final = Path(__file__).with_name("kubernetes_load.py")
RELEASE: Final = "drill"
NAME: Final = f"{RELEASE}-warmlane"


def nothing_to_drill() -> str:
    """Why there is no cluster to drill; empty where there is one."""
    if missing := [program for program in ("kubectl", "helm") if shutil.which(program) is None]:
        return f"there is no {' and no '.join(missing)}"
    return "" if "KUBECONFIG" in os.environ else "KUBECONFIG names no cluster"


class Cluster:
    """The chart in a namespace of a cluster."""

    def __init__(self, namespace: str, chart: Path, helm_arguments: Sequence[str]) -> None:
        self.namespace, self._chart, self._helm_arguments = namespace, chart, helm_arguments

    def kubectl(self, *arguments: str, check: bool = True, given: str | None = None, timeout_s: float = 600) -> str:
        """What kubectl prints. Raises RuntimeError with its error text."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, input=given, timeout=timeout_s)
        if check and ran.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ran.stderr.strip()}")
        return ran.stdout

    def objects(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of *kind* in the namespace."""
        arguments = ["get", kind, "--output", "json", *(["--selector", selector] if selector else [])]
        found: list[dict[str, Any]] = json.loads(self.kubectl(*arguments))["items"]
        return found

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """The object of *kind* that is called *name*. Raises RuntimeError where there is none."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        return found

    def version(self) -> str:
        """The version of the API server."""
        return str(json.loads(self.kubectl("version", "--output", "json"))["serverVersion"]["gitVersion"])

    def pods(self, selector: str) -> list[str]:
        """The names of the pods that are not being deleted."""
        return [
            each["metadata"]["name"]
            for each in self.objects("pods", selector)
            if "deletionTimestamp" not in each["metadata"]
        ]

    def install(self, *more: str, within: str = "30m") -> None:
        """Installs or upgrades the chart, and waits until every pod is ready."""
        self.change(*more)
        self.warm(within)

    def change(self, *more: str) -> None:
        """Installs or upgrades the chart, and waits for nothing."""
        command = ["helm", "upgrade", "--install", RELEASE, str(self._chart), "--namespace", self.namespace]
        command += ["--create-namespace", "--set", "admin.enabled=true", *self._helm_arguments, *more]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ran.stderr.strip()}")

    @contextmanager
    def changed(self, *more: str) -> Iterator[None]:
        """The chart has *more* within the block. Afterwards it is back without *more*, and warm again."""
        self.change(*more)
        try:
            yield
        finally:
            self.change()
        self.warm()

    def warm(self, within: str = "30m") -> None:
        """Returns when every Deployment is rolled out, and so every lane is warm."""
        for each in self.objects("deployments"):
            self.kubectl(
                "rollout", "status", f"deployment/{each['metadata']['name']}", f"--timeout={within}", timeout_s=2_000
            )

    def admin(self, *command: str, given: str | None = None) -> str:
        """What *command* prints in the chart's pod for operators."""
        return self.kubectl("exec", "--stdin", f"deployment/{NAME}-admin", "--", *command, given=given)

    def begin(self, *more: str) -> None:
        """Installs the chart, waits until every lane is warm, and makes a key without a limit."""
        self.change(*more)
        self.warm()
        key = self.admin("warmlane", "keys", "add", "drill", "--scope", "admin", "--rate", "0").split()[-1]
        self.admin("sh", "-c", "umask 077; cat > /tmp/key", given=key)
        self.admin("sh", "-c", "cat > /tmp/load.py", given=LOAD.read_text())

    @contextmanager
    def load(
        self, name: str, models: Sequence[str], *, clients: int, count: int | None, profile: str
    ) -> Iterator["Load"]:
        """Clients that send until the block ends, and what they print."""
        arguments = [name, "--models", *models, "--clients", str(clients), "--profile", profile]
        arguments += [] if count is None else ["--count", str(count)]
        script = 'export WARMLANE_API_KEY=$(cat /tmp/key); exec python /tmp/load.py "$@"'
        command = ["kubectl", "--namespace", self.namespace, "exec", "--stdin", f"deployment/{NAME}-admin", "--"]
        process = subprocess.Popen(
            [*command, "sh", "-c", script, "load", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        load = Load(process)
        try:
            yield load
        finally:
            load.end()


class Load:
    """A load that runs in the cluster, and every line that it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.said.append(json.loads(line))

    def wait_for(self, what: str, count: int, *, within_s: float = 300) -> None:
        """Returns when the load has printed *count* more lines of the kind *what*."""
        so_far = self.count(what)

        def enough() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"the load has ended: {self.said[-3:]}")
            return self.count(what) >= so_far + count

        eventually_sync(enough, within_s=within_s)

    def count(self, what: str) -> int:
        return sum(each["what"] == what for each in self.said)

    def end(self) -> None:
        """Lets the clients finish, and waits for their last line."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=600)
        self._reader.join(timeout=60)
