"""FR-010: which allocator a worker asks for, and that the fork server takes nothing else. Without torch."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lane_worker.forking.allocator import NAMES, AllocatorMisconfigured, environment, require
from lane_worker.forking.command import command
from lane_worker.forking.fork_server import FORK_SERVER, host_environment

CUDA = "PYTORCH_CUDA_ALLOC_CONF"
ANY = "PYTORCH_ALLOC_CONF"
ROUNDING = "pinned_max_round_threshold_mb:1"


@pytest.mark.parametrize(
    ("base", "setting"),
    [
        ({}, "expandable_segments:True"),
        ({ANY: ""}, "expandable_segments:True"),
        ({CUDA: "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({ANY: f"{ROUNDING},max_split_size_mb:64"}, f"{ROUNDING},max_split_size_mb:64,expandable_segments:True"),
        ({ANY: "expandable_segments: True", CUDA: "expandable_segments: True"}, "expandable_segments: True"),
        ({CUDA: "backend:native"}, "backend:native,expandable_segments:True"),
        (
            {ANY: "roundup_power2_divisions:[256:1,>:4]"},
            "roundup_power2_divisions:[256:1,>:4],expandable_segments:True",
        ),
    ],
)
def test_what_is_asked_for_beside_it_is_kept(base: dict[str, str], setting: str) -> None:
    made = environment(base)
    setting = setting if ROUNDING in setting else f"{setting},{ROUNDING}"
    assert made == {ANY: setting, CUDA: setting, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    require(made)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({ANY: "expandable_segments:False"}, r"expandable_segments:False: remove it"),
        ({CUDA: "max_split_size_mb:64,expandable_segments:true"}, r"PYTORCH_CUDA_ALLOC_CONF has .*:true: remove it"),
        ({CUDA: "pinned_max_round_threshold_mb:64"}, "pinned_max_round_threshold_mb:64: remove it, Warmlane counts"),
        ({CUDA: "backend:cudaMallocAsync"}, "backend:cudaMallocAsync: remove it"),
        ({ANY: "max_split_size_mb:64", CUDA: "max_split_size_mb:65"}, "contradict each other: remove one"),
    ],
)
def test_what_forbids_it_is_refused(base: dict[str, str], words: str) -> None:
    with pytest.raises(AllocatorMisconfigured, match=words):
        host_environment(base | {"PATH": "/bin"})


@pytest.mark.parametrize("name", [*NAMES, "PYTORCH_NVML_BASED_CUDA_CHECK"])
def test_each_variable_is_required(name: str) -> None:
    made = environment({})
    with pytest.raises(AllocatorMisconfigured, match=name):
        require({key: value for key, value in made.items() if key != name})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"PYTORCH_NVML_BASED_CUDA_CHECK": "0"}, "PYTORCH_NVML_BASED_CUDA_CHECK is '0'"),
        ({ANY: "expandable_segments:False"}, "contradict each other"),
        ({ANY: "", CUDA: ""}, "PYTORCH_ALLOC_CONF is ''"),
    ],
)
def test_a_fork_server_in_another_environment_ends_before_it_imports_torch(changed: dict[str, str], words: str) -> None:
    ended = subprocess.run(
        [*FORK_SERVER, "0"], env=host_environment(os.environ) | changed, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "the fork server does not start" in ended.stderr
    assert words in ended.stderr


def test_the_shared_fork_server_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it must not start"))
    refused = CliRunner(env={ANY: "expandable_segments:False"}).invoke(command, [f"{tmp_path}/forks"])
    assert refused.exit_code == 1
    assert "Warmlane serves with expandable_segments:True only" in refused.output
