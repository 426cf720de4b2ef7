"""A real API server of Kubernetes, with its controllers and its scheduler, on free ports of the loopback. No pod runs:
a node is an object whose status a test writes."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kit.support import clean_environment, eventually_sync, free_port
from tests.kit.tools import tool

T = TypeVar("T")

TOKEN: Final = "admin-of-the-tests"
# Enough for the first start on a busy machine.
WITHIN_S: Final = 120.0


class ApiServer:
    """etcd, kube-apiserver, kube-controller-manager and kube-scheduler in *folder*. Needs the tool `kube`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kube = tool("kube")
        self.url = ""
        self.kubeconfig = folder / "kubeconfig"
        """The kubeconfig of an admin."""
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when the controllers work: they have given a new namespace its service account."""
        store, peers, port = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{port}"
        self._write_keys()
        self._run(
            *("etcd", "--data-dir", "etcd", "--unsafe-no-fsync", "--log-level", "error"),
            *(f"--{kind}-client-urls=http://127.0.0.1:{store}" for kind in ("listen", "advertise")),
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
        )
        self._run(
            *("kube-apiserver", "--bind-address=127.0.0.1", f"--secure-port={port}", "--cert-dir=certs"),
            *(f"--etcd-servers=http://127.0.0.1:{store}", "--token-auth-file=tokens", "--authorization-mode=RBAC"),
            *("--service-account-key-file=sa.pub", "--service-account-signing-key-file=sa.key"),
            *("--service-account-issuer=https://warmlane.invalid", "--service-cluster-ip-range=10.96.0.0/16"),
            *("--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"),
        )
        eventually_sync(lambda: (self._folder / "certs" / "apiserver.crt").exists(), within_s=WITHIN_S)
        user = {"name": "admin", "user": {"token": TOKEN}}
        cluster = {"server": self.url, "certificate-authority": str(self._folder / "certs" / "apiserver.crt")}
        context = {"name": "tests", "context": {"cluster": "tests", "user": "admin"}}
        config = {"apiVersion": "v1", "kind": "Config", "users": [user], "contexts": [context]}
        config |= {"clusters": [{"name": "tests", "cluster": cluster}], "current-context": "tests"}
        self.kubeconfig.write_text(json.dumps(config))
        eventually_sync(lambda: self.asked("get", "--raw", "/readyz") == "ok", within_s=WITHIN_S)
        common = (
            f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            "--leader-elect=false",
        )
        # no kubelet reports for a node: the controller would count it as lost after 50 s
        alive = "--node-monitor-grace-period=24h"
        self._run("kube-controller-manager", *common, "--service-account-private-key-file=sa.key", alive)
        self._run("kube-scheduler", *common)
        eventually_sync(lambda: self.asked("get", "serviceaccount", "default"), within_s=WITHIN_S)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait(timeout=WITHIN_S)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl prints. Raises AssertionError with its output if it fails."""
        ran = self._ran(arguments, given)
        assert ran.returncode == 0, f"kubectl {' '.join(arguments)}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def warnings(self, *arguments: str, given: str | None = None) -> list[str]:
        """The warnings of the API server about a request that it accepts."""
        ran = self._ran(arguments, given)
        assert ran.returncode == 0, ran.stderr
        return [line for line in ran.stderr.splitlines() if line.startswith("Warning:")]

    def refused(self, *arguments: str, given: str | None = None) -> str:
        """The error that kubectl prints. It has to fail."""
        ran = self._ran(arguments, given)
        assert ran.returncode != 0, f"kubectl {' '.join(arguments)} was taken: {ran.stdout}"
        return ran.stderr

    def asked(self, *arguments: str) -> str:
        """What kubectl prints; nothing where it fails."""
        ran = self._ran(arguments, None)
        return ran.stdout if ran.returncode == 0 else ""

    def get(self, *arguments: str) -> Any:
        """The object, or the list of objects, that `kubectl get` finds."""
        found = json.loads(self.kubectl("get", *arguments, "--output", "json"))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *objects: dict[str, Any], namespace: str = "default") -> None:
        """Creates or changes *objects*."""
        self.kubectl("apply", "--namespace", namespace, "--filename", "-", given=yaml.safe_dump_all(objects))

    def node(self, name: str, **capacity: str) -> None:
        """A node that is ready, and has *capacity* beside CPUs, memory and pods."""
        every = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti"} | capacity
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {HOST: name}}})
        ready = {"type": "Ready", "status": "True", "reason": "Test", "message": ""}
        status = {"status": {"capacity": every, "allocatable": every, "conditions": [ready]}}
        self.kubectl("patch", "node", name, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")
        # the node controller adds these taints to a node that has never reported
        self.asked("taint", "node", name, "node.kubernetes.io/not-ready-", "node.kubernetes.io/unreachable-")

    def eventually(self, found: Callable[[], T]) -> T:
        """The first true value of *found*."""
        return eventually_sync(found, within_s=WITHIN_S)

    def _ran(self, arguments: Sequence[str], given: str | None) -> "subprocess.CompletedProcess[str]":
        command: list[str | Path] = [self._kube, "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        # kubectl's cache is the test's own, and kubectl reads no user's home
        env = clean_environment() | {"HOME": str(self._folder)}
        return subprocess.run(command, capture_output=True, text=True, check=False, input=given, env=env)

    def _run(self, *arguments: str) -> None:
        with (self._folder / f"{arguments[0]}.log").open("wb") as log:
            command: list[str | Path] = [self._kube, *arguments]
            self._processes.append(subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log))

    def _write_keys(self) -> None:
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self._folder / "sa.key").write_bytes(private)
        (self._folder / "sa.pub").write_bytes(public)
        (self._folder / "tokens").write_text(f'{TOKEN},admin,1,"system:masters"\n')


HOST: Final = "kubernetes.io/hostname"


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """A server that is up until the block ends. Skips the test where its programs are missing."""
    server = ApiServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Helm:
    """The chart of this checkout, as Helm sees it. Needs the tool `helm`."""

    CHART: Final = Path(__file__).parents[2] / "ops" / "kubernetes" / "warmlane"

    def __init__(self, folder: Path) -> None:
        self._helm = tool("helm")
        self._rendered: dict[tuple[str, ...], str] = {}
        self._objects: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._env = clean_environment() | {
            "HOME": str(folder),
            "PATH": os.environ["PATH"],
            **{f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")},
        }

    def lint(self, *arguments: str) -> None:
        """Raises AssertionError with what Helm finds."""
        ran = self._ran("lint", "--strict", "--quiet", self.CHART, *arguments)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def rendered(self, *arguments: str) -> str:
        """The manifests, rendered once for each tuple of *arguments*. Raises AssertionError."""
        if arguments not in self._rendered:
            ran = self._ran("template", "w", self.CHART, *arguments)
            assert ran.returncode == 0, ran.stderr
            self._rendered[arguments] = ran.stdout
        return self._rendered[arguments]

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects in the manifests; not to be changed."""
        if arguments not in self._objects:
            self._objects[arguments] = [each for each in yaml.safe_load_all(self.rendered(*arguments)) if each]
        return self._objects[arguments]

    def refused(self, *arguments: str) -> str:
        """Why Helm does not render the chart."""
        ran = self._ran("template", "w", self.CHART, *arguments)
        assert ran.returncode != 0, "it was rendered"
        return ran.stderr

    def upgrade(self, *arguments: str) -> None:
        """Installs the chart as release `w`, or upgrades that release. Raises AssertionError."""
        ran = self._ran("upgrade", "--install", "w", self.CHART, *arguments)
        assert ran.returncode == 0, ran.stderr

    def _ran(self, *command: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([self._helm, *command], capture_output=True, text=True, check=False, env=self._env)
