"""Prompts, images, API keys and passwords stay where they belong: the test puts canaries of each in, and then looks for
them in everything that an operator, a collector or a stranger gets to see."""

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ops.machine.processes import warmlane_command
from ops.nats.access import ROLES, environment_for
from tests.kit.collector import Collector
from tests.kit.gate import Gate, gated_forks
from tests.kit.samples import damaged, data_uri
from tests.kit.support import BOUND_S, children_of, clean_environment, command_line, eventually_sync
from tests.kit.system import UpProcess

PROMPT = "canaryprompt"
NEGATIVE = "canarynegative"
IMAGE = "canaryimage"
GUESSED = "ab" * 32  # the secret of no key


class RawCollector(Collector):
    """A collector that also keeps the raw bytes that it receives."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__()

    def receive(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        super().receive(path, body)


def picture() -> str:
    """A PNG with the canary in its metadata, as a data URI."""
    metadata = PngInfo()
    metadata.add_text("Comment", IMAGE)
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (7, 77, 177)).save(file, "PNG", pnginfo=metadata)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def add_key(up: UpProcess, *scopes: str) -> str:
    options = [part for scope in scopes for part in ("--scope", scope)]
    # its password is the one that `warmlane up` made, in the data folder
    options += ["--data-dir", str(up.data_dir), "--nats-url", f"nats://127.0.0.1:{up.nats_port}"]
    environment = environment_for(None, clean_environment())
    command = warmlane_command("keys", "add", "canary-caller", *options)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def wrong_requests(http: httpx.Client, image: str) -> list[httpx.Response]:
    """Refusals of every kind, each for a request that is full of canaries."""
    full = {"model": "anisora", "prompt": PROMPT, "negative_prompt": NEGATIVE, "image": image}
    bodies: list[dict[str, Any]] = [
        full | {"steps": 7},
        full | {"prompt": PROMPT * 1_000},
        full | {"prompt": [PROMPT]},
        full | {"negative_prompt": {"text": NEGATIVE}},
        full | {"image": image[:-3]},
        full | {"image": image.replace("image/png", "image/jpeg")},
        full | {"image": PROMPT},
        full | {"steps": PROMPT * 10, "width": {"a": PROMPT}},
        full | {"text": PROMPT},
    ]
    answers = [http.post("/generate", json=body) for body in bodies]
    answers.append(http.post("/generate", json=full, headers={"Content-Type": "text/plain"}))
    answers.append(http.post("/generate", json=full, headers={"Idempotency-Key": "two words"}))
    text = json.dumps(full)
    for content in (text[:-1], text + PROMPT, text.encode() + b"\xff", text.replace('"model"', '"prompt"')):
        answers.append(http.post("/generate", content=content, headers={"Content-Type": "application/json"}))
    answers.append(http.get("/admin/lanes"))
    for secret in (GUESSED, PROMPT):
        bad = {"Authorization": f"Bearer wl_0123456789ab_{secret}"}
        answers.append(http.post("/generate", json=full, headers=bad))
    return answers


def test_no_secret_is_revealed(tmp_path: Path, gate: Gate) -> None:
    collector = RawCollector()
    options = ("--lanes", "anisora=1,phr00t=0", "--step-seconds", "0.1")
    up = UpProcess(tmp_path, *options, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **gated_forks())
    image = picture()
    try:
        up.start()
        key = add_key(up, "submit", "read")
        secret = key.rsplit("_", 1)[1]
        up.http.headers["Authorization"] = f"Bearer {key}"

        def closed() -> bool:
            return httpx.get(f"{up.url}/tasks", timeout=BOUND_S).status_code == 401

        eventually_sync(closed)
        # videos by a lane and by the degraded worker; one cancelled; one whose host is killed; one with a bad picture
        done = [
            up.submit(prompt=PROMPT, negative_prompt=NEGATIVE, image=image),
            up.submit(model="phr00t", prompt=PROMPT, negative_prompt=NEGATIVE),
        ]
        assert [up.ended(task["id"])["status"] for task in done] == ["done", "done"]
        assert PROMPT in up.http.get(f"/tasks/{done[0]['id']}").text  # its caller may read it
        cancelled = up.submit(prompt=PROMPT)
        up.http.delete(f"/tasks/{cancelled['id']}")
        payload = image.partition(",")[2]
        noise = damaged(base64.b64decode(payload))
        broken = up.submit(prompt=PROMPT, image=data_uri(noise))
        assert up.ended(broken["id"])["error"]["code"] == "invalid_input"
        killed = up.submit(prompt=f"{PROMPT} {gate.prompt}")
        os.kill(up.runs(killed["id"]), 9)
        gate.open()
        up.ended(killed["id"])
        refusals = wrong_requests(up.http, image)
        assert {answer.status_code for answer in refusals} == {400, 401, 403, 415, 422}
        shown = [command_line(pid) for pid in (up.pid, *children_of(up.pid))]
        hosts = [Path(f"/proc/{up.host_of(worker)}/environ").read_bytes() for worker in ("anisora-0", "degraded-0")]
    finally:
        up.stop()
        collector.close()
    passwords = [json.loads((up.data_dir / "nats-auth" / f"{role}.json").read_text())["password"] for role in ROLES]
    places = {
        "error bodies": "\n".join(f"{answer.headers}\n{answer.text}" for answer in refusals),
        "logs": "\n".join(path.read_text() for path in sorted((up.data_dir / "logs").iterdir())),
        "terminal": up.output.read_text(),
        "traces": b"\n".join(collector.bodies).decode(errors="replace"),
        "command lines": "\n".join(shown),
    }
    assert done[0]["id"] in places["logs"]  # so the search looks in the right places
    assert done[0]["id"] in places["traces"]
    for canary in (PROMPT, NEGATIVE, IMAGE, payload[:60], payload[40:100], secret, GUESSED, *passwords):
        assert [place for place, text in places.items() if canary in text] == [], canary
    # an attacker who takes over the process that decodes pictures finds no password in its environment
    assert not [host for host in hosts if any(password.encode() in host for password in passwords)]
