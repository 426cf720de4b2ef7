"""The environment in which torch is imported: the allocator's setting (FR-010), equal results, and no password."""

import subprocess
import sys
from pathlib import Path

import pytest

from lane_worker.forking.fork_server import ForkServer, host_environment
from ops.nats.access import ROLES, password_variable

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments:True"),
    ],
)
def test_the_allocator_is_configured(before: dict[str, str], expected: str) -> None:
    made = host_environment(before | {"PATH": "/bin"})
    expected += ",pinned_max_round_threshold_mb:1"
    assert [made[name] for name in NAMES] == [expected, expected]
    assert made["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert made["PATH"] == "/bin"


async def test_the_fork_server_does_not_know_which_cards_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `MIG-…` in the variable torch starts CUDA at its import, and CUDA does not survive a fork."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-41b36db5-df92-5926-ab5e-ba2c4bb2b3e5")
    monkeypatch.setenv("WARMLANE_MARK", "here")
    server = ForkServer(shared="")
    await server.start()
    try:
        variables = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    finally:
        await server.close()
    assert b"WARMLANE_MARK=here" in variables
    assert not [each for each in variables if each.startswith(b"CUDA_VISIBLE_DEVICES")]


def test_no_password_is_handed_to_the_process_that_decodes_what_clients_send() -> None:
    passwords = {password_variable(role): "secret" for role in ROLES}
    assert "secret" not in host_environment(passwords | {"PATH": "/bin"}).values()


OF_ONE_ROW = """
import torch


def at(place, values):
    room = torch.empty(values.numel() + 16)[place : place + values.numel()].view(values.shape)
    return room.copy_(values)


torch.manual_seed(0)
row, weights, bias = torch.randn(1, 1, 256), torch.randn(32, 256), torch.randn(32)
places = [(i, j) for i in range(5) for j in range(5)]
found = [torch.nn.functional.linear(at(i, row), at(j, weights), bias) for i, j in places]
print(all(torch.equal(each, found[0]) for each in found))
"""


def test_a_result_does_not_depend_on_where_in_memory_a_tensor_lies() -> None:
    """Without its setting, MKL's rounding depends on that on some CPUs (seen on an EPYC with AVX-512)."""
    made = host_environment({"PATH": "/bin"})
    assert made["MKL_CBWR"] == "AUTO"
    assert host_environment({"PATH": "/bin", "MKL_CBWR": "AVX2"})["MKL_CBWR"] == "AVX2"
    shown = subprocess.run([sys.executable, "-c", OF_ONE_ROW], env=made, capture_output=True, text=True, check=True)
    assert shown.stdout == "True\n"
