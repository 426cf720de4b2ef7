"""The environment in which torch is imported: the allocator's setting (FR-010), and no password."""

import pytest

from lane_worker.runtime.host import host_environment
from ops.nats_access import ROLES, password_variable

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
    assert [made[name] for name in NAMES] == [expected, expected]
    assert made["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert made["PATH"] == "/bin"


def test_no_password_is_handed_to_the_process_that_decodes_what_clients_send() -> None:
    passwords = {password_variable(role): "secret" for role in ROLES}
    assert "secret" not in host_environment(passwords | {"PATH": "/bin"}).values()
