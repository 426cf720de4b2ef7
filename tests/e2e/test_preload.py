"""The fork server has imported everything that the rehearsal of a pipeline host needs."""

import subprocess
import sys
from pathlib import Path

from tests.kit.support import clean_environment

SCRIPT = """
import sys
from pathlib import Path

import torch

from contracts.settings import load_settings
from lane_worker.pipelines.preload import preload
from lane_worker.pipelines.rehearsal import rehearse
from lane_worker.residence.rehearsal import to_rehearse
import lane_worker.pipelines.child

torch.set_num_threads(1)
preload()
before = set(sys.modules)
models = load_settings().catalog("tiny").models.values()
outcome = rehearse(to_rehearse(model.checkpoint for model in models), Path(sys.argv[1]), "cpu")
print(outcome.error or sorted(set(sys.modules) - before))
"""


def test_a_rehearsal_imports_nothing(tmp_path: Path) -> None:
    """This saves each host a tenth of a second at its start, and hosts share the pages instead of having their own."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rehearsal")]
    said = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]", said.stdout
