"""compose.yaml as Docker Compose reads it, with variables put in and services chosen by profile. For tests without an
engine.

`tests/unit/ops/test_compose.py` holds this against Docker Compose itself, where there is one.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ops.nats.access import ROLES, password_variable

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "compose.yaml"
IMAGES: Final = ROOT / "ops" / "deploy" / "images"
DOCKERFILES: Final = sorted(path for path in IMAGES.glob("*.Dockerfile") if path.name != "observe.Dockerfile")
"""All but the images of other projects, to which `observe.Dockerfile` adds our configuration."""
SECRETS: Final = {password_variable(role): f"pw-{role}" for role in ROLES} | {"WARMLANE_GRAFANA_PASSWORD": "pw-grafana"}
CARDS: Final = {f"WARMLANE_{name}_GPU": f"GPU-{name.lower()}-0f1e" for name in ("ANISORA", "PHR00T", "DEGRADED")}
# $$, ${NAME}, ${NAME:-DEFAULT} and ${NAME:?MESSAGE}; anything else with a $ is none of these.
_VARIABLE: Final = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})?")
_STAGE: Final = re.compile(r"^FROM (\S+)", re.MULTILINE)

Service = dict[str, Any]


class NotSet(Exception):
    """A variable without a default has no value. The text is what Compose shows the user."""


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """*text* with *variables* put in; an empty variable counts as absent. Raises NotSet."""

    def value(match: re.Match[str]) -> str:
        dollar, name, kind, rest = match.groups()
        if dollar:
            return "$"
        assert name, f"a $ that is no variable: {text}"
        found = variables.get(name, "")
        if not found and kind == "?":
            raise NotSet(f"{name} {rest}")
        return found or (rest if kind == "-" else "")

    return _VARIABLE.sub(value, text)


def services(variables: Mapping[str, str]) -> dict[str, Service]:
    """Every service of compose.yaml, of all profiles. Raises NotSet whatever the profile, as Compose does."""

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return interpolated(node, variables) if isinstance(node, str) else node

    found: dict[str, Service] = filled(_read())["services"]
    return found


@cache
def _read() -> Any:
    """What the file says, with its variables as they are typed."""
    return yaml.safe_load(FILE.read_text())


def chosen(found: Mapping[str, Service], *profiles: str) -> dict[str, Service]:
    """The services that `docker compose --profile PROFILE up` starts, with one or several profiles."""
    return {name: each for name, each in found.items() if {*profiles} & {*each.get("profiles", profiles)}}


def builders() -> dict[str, Service]:
    """Every image that is built here, with one service that builds it."""
    return {each["image"]: each for each in services(SECRETS | CARDS).values() if "build" in each}


def dockerfile(service: Service) -> Path | None:
    """What the image of *service* is built from, whichever service builds it; None for an image that is pulled."""
    builder = builders().get(service["image"])
    return None if builder is None else ROOT / builder["build"]["dockerfile"]


def is_ours(service: Service) -> bool:
    """Whether *service* runs a command of `warmlane`, for which our own images are made."""
    return dockerfile(service) in {IMAGES / "gateway.Dockerfile", IMAGES / "worker.Dockerfile"}


def base_images(path: Path) -> list[str]:
    """The images that a Dockerfile begins its stages with."""
    text = path.read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    return [image for image in _STAGE.findall(text) if image not in stages]


def final_stage(path: Path) -> list[tuple[str, str]]:
    """The instructions of the last stage of a Dockerfile and their arguments, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = text[text.rindex("FROM ") :].splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in lines if line.strip()]


def image_environment(path: Path) -> dict[str, str]:
    """What ENV sets in the last stage of a Dockerfile."""
    words = [word for name, rest in final_stage(path) if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def venv_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of the virtual environment, without access to the internet."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | nowhere, check=False)


ALL: Final = services(SECRETS | CARDS)
"""Every service, with passwords and cards."""
OURS: Final = {name: each for name, each in ALL.items() if is_ours(each)}
"""The services that run Warmlane."""

PROFILES: Final = ("cpu", "supervised", "gpu", "supervised-gpu")

each_service = pytest.mark.parametrize("name", ALL)
each_of_ours = pytest.mark.parametrize("name", OURS)
