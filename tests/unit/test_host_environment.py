"""FR-010: the environment in which torch is imported carries the allocator's setting, under both of its names."""

import pytest

from lane_worker.runtime.host import _environment

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
    made = _environment(before | {"PATH": "/bin"})
    assert [made[name] for name in NAMES] == [expected, expected]
    assert made["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert made["PATH"] == "/bin"
