"""The real tools of those who run and build Warmlane, from the NATS CLI to nginx.

`.ci/build-tools FOLDER` builds what Debian does not have, in the versions that `.ci/tools` pins; `WARMLANE_TEST_TOOLS`
names that folder. A test whose tool is missing is skipped and says why.
"""

import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Final, Literal

import pytest

PINS: Final = Path(__file__).parents[2] / ".ci" / "tools"
FOLDER: Final = os.environ.get("WARMLANE_TEST_TOOLS")
BUILT_BY: Final = ".ci/build-tools"
_PINNED: Final = {
    "nats": "NATS_CLI",
    "jaeger": "JAEGER",
    "actionlint": "ACTIONLINT",
    "kube": "KUBERNETES",
    "helm": "HELM",
    "keda-crds": "KEDA_CRDS",
    "prometheus-operator-crds": "PROMETHEUS_OPERATOR_CRDS",
    "openapi-python-client": "OPENAPI_PYTHON_CLIENT",
    "openapi-typescript": "OPENAPI_TYPESCRIPT",
}

Tool = Literal[
    "nats",
    "jaeger",
    "prometheus",
    "promtool",
    "jq",
    "actionlint",
    "kube",
    "helm",
    "keda-crds",
    "prometheus-operator-crds",
    "nginx",
    "chromium",
    "node",
    "openapi-python-client",
    "openapi-typescript",
]


@cache
def tool(name: Tool) -> Path:
    """The program. Skips the test if it is missing or not of the version that `.ci/tools` pins."""
    if name not in _PINNED:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin")  # Debian has nginx there
        if found is None:
            pytest.skip(f"no {name}: it is a package of Debian's")
        return Path(found)
    if FOLDER is None:
        pytest.skip(f"no {name}: build it with {BUILT_BY} FOLDER, and set WARMLANE_TEST_TOOLS=FOLDER")
    path, said = Path(FOLDER) / name, Path(FOLDER) / f"{name}.version"
    wanted = pinned(name)
    if not path.exists() or not said.exists() or said.read_text().strip() != wanted:
        pytest.skip(f"no {name} {wanted} in {FOLDER}: {BUILT_BY} builds it, and says what it needs")
    return path.absolute()


def pinned(name: Tool) -> str:
    """The version that `.ci/tools` pins."""
    found = re.search(rf"^{_PINNED[name]}=(\S+)", PINS.read_text(), re.MULTILINE)
    assert found is not None, name
    return found[1]
