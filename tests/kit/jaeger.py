"""The real Jaeger with the committed configuration: its query API shows what it makes of our spans.

`.ci/build-tools` builds it, and `WARMLANE_TEST_TOOLS` names the folder that holds it. Tests that need it are skipped
where it is missing.
"""

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.kit.support import BOUND_S, eventually_sync, free_port
from tests.kit.tools import tool

COMMITTED: Final = Path(__file__).parents[2] / "ops" / "deploy" / "observe" / "jaeger.yaml"
MISSING: Final = "no jaeger as .ci/tools pins it: .ci/build-tools FOLDER builds it; then set WARMLANE_TEST_TOOLS=FOLDER"


def jaeger_program() -> Path | None:
    """The program; None where it is missing or not of the version that `.ci/tools` pins."""
    try:
        return tool("jaeger")
    except pytest.skip.Exception:  # `make observe` is no test
        return None


def configuration(folder: Path, otlp: int, query: int) -> dict[str, Any]:
    """The committed configuration, with ports of the loopback and a folder of the test's."""
    config: dict[str, Any] = yaml.safe_load(COMMITTED.read_text())
    ports = {"0.0.0.0:4318": otlp, "0.0.0.0:16686": query}

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(each) for name, each in value.items()}
        if isinstance(value, str) and re.fullmatch(r"[\d.]+:\d+", value):
            return f"127.0.0.1:{ports.get(value) or free_port()}"
        return str(folder / "traces") if value == "/tmp/jaeger" else value

    return {name: moved(each) for name, each in config.items()}


class Jaeger:
    """A Jaeger for one test. `close` it."""

    def __init__(self, program: Path, folder: Path) -> None:
        otlp, query = free_port(), free_port()
        self.otlp_url, self.url = f"http://127.0.0.1:{otlp}", f"http://127.0.0.1:{query}"
        config = folder / "jaeger.json"
        config.write_text(json.dumps(configuration(folder, otlp, query)))
        self._log = (folder / "jaeger.log").open("wb")
        self._process = subprocess.Popen([program, "--config", config], stdout=self._log, stderr=subprocess.STDOUT)
        eventually_sync(self._answers)

    def take(self, path: str, body: bytes) -> None:
        """Forwards to Jaeger what an exporter sent, as OTLP over HTTP."""
        headers = {"Content-Type": "application/x-protobuf"}
        with urllib.request.urlopen(urllib.request.Request(self.otlp_url + path, body, headers), timeout=30):
            pass

    def get(self, path: str, **query: str | int) -> Any:
        """The `data` of an answer of its query API."""
        answer = httpx.get(f"{self.url}{path}", params=query, timeout=30, trust_env=False)
        answer.raise_for_status()
        return answer.json()["data"]

    def find(self, service: str, **tags: str) -> list[Any]:
        """The traces with a span of *service* that has *tags*."""
        return list(self.get("/api/traces", service=service, limit=1000, lookback="1h", tags=json.dumps(tags)))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            return httpx.get(f"{self.url}/api/services", trust_env=False, timeout=BOUND_S).is_success
        except httpx.TransportError:
            return False
