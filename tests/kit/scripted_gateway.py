"""A gateway that answers as scripted: lost, refused, damaged and foreign answers."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner, Result

from ops.cli import cli

ID: Final = "019c9a4e-0000-7000-8000-0123456789ab"
VIDEO: Final = b"not really a video"
PENDING: Final[dict[str, Any]] = {
    "id": ID,
    "status": "pending",
    "model": "anisora",
    "route": "lane",
    "parameters": {"seed": 7, "steps": 8, "prompt": "a fox", "negative_prompt": ""},
    "created_at": "2026-02-26T12:00:00Z",
    "queued_at": "2026-02-26T12:00:00Z",
    "links": {"self": f"/tasks/{ID}", "events": f"/tasks/{ID}/events"},
    "a_field_of_a_later_version": 1,
}
DONE: Final[dict[str, Any]] = {
    **PENDING,
    "status": "done",
    "video": {
        "bytes": len(VIDEO),
        "sha256": hashlib.sha256(VIDEO).hexdigest(),
        "width": 96,
        "height": 64,
        "frames": 17,
        "fps": 16,
    },
}


class Answer:
    """One scripted answer; *lost* closes the connection instead."""

    def __init__(self, status: int = 200, body: object = b"", *, etag: str | None = None, lost: bool = False) -> None:
        self.status = status
        self.lost = lost
        self.etag = etag
        self.retry_after: str | None = None
        self.content = body if isinstance(body, bytes) else json.dumps(body).encode()


def problem(status: int, code: str, **more: object) -> Answer:
    document = {"type": f"urn:warmlane:problem:{code}", "title": f"title of {code}", "status": status, "detail": ""}
    return Answer(status, {**document, "code": code, **more})


class ScriptedGateway:
    """Answers one request after the other from a list, and keeps the requests."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("/events"):  # no stream comes through here, so that the task is polled
                    self.send_error(501)
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                gateway.asked.append((self.command, self.path, headers, content))
                answer = gateway.script.pop(0)
                if answer.lost:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                if answer.etag:
                    self.send_header("ETag", answer.etag)
                if answer.retry_after:
                    self.send_header("Retry-After", answer.retry_after)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def submit(gateway: ScriptedGateway, tmp_path: Path, *arguments: str) -> Result:
    command = ["submit", "anisora", "a fox", "--url", gateway.url, "--out", str(tmp_path / "fox.mp4"), *arguments]
    result = CliRunner().invoke(cli, command)
    assert gateway.script == [], "an answer was not asked for"
    return result
