"""The NVML probe, through the real pynvml, on a library that lies as it is told."""

from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from ops.memory import GIB, NvmlProbe, Reading, probe_for
from tests.fake_nvml import UUID, FakeNvml, fake_nvml


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    with fake_nvml(tmp_path, monkeypatch) as card:
        yield card


def test_the_memory_of_the_card(card: FakeNvml) -> None:
    card.set(used_bytes=30 * GIB, reserved_bytes=GIB)
    assert NvmlProbe(UUID).read(1) == Reading(used_bytes=30 * GIB, free_bytes=49 * GIB)


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
    ],
)
def test_a_driver_that_knows_the_first_version_only(card: FakeNvml, code: int) -> None:
    card.set(used_bytes=30 * GIB, reserved_bytes=GIB, v2_error=code)
    # the first version counts as used what the driver reserves
    assert NvmlProbe(UUID).read(None) == Reading(used_bytes=31 * GIB, free_bytes=49 * GIB)


def test_another_error_is_not_answered_by_the_first_version(card: FakeNvml) -> None:
    card.set(used_bytes=30 * GIB, v2_error=pynvml.NVML_ERROR_UNKNOWN)
    assert NvmlProbe(UUID).read(None) is None


@pytest.mark.parametrize("fault", ["init_error", "read_error"])
def test_a_fault_is_a_missing_reading_until_it_is_over(card: FakeNvml, fault: str) -> None:
    probe = NvmlProbe(UUID)
    card.set(**{fault: pynvml.NVML_ERROR_GPU_IS_LOST})
    assert probe.read(None) is None
    assert probe.read(None) is None
    card.set(used_bytes=GIB)
    assert probe.read(None) == Reading(used_bytes=GIB, free_bytes=79 * GIB)


def test_a_falling_figure(card: FakeNvml) -> None:
    card.set(used_bytes=6 * GIB, fall_bytes=2 * GIB, least_bytes=GIB)
    probe = NvmlProbe(UUID)
    readings = [probe.read(None) for _ in range(4)]
    assert [reading and reading.used_bytes // GIB for reading in readings] == [6, 4, 2, 1]


def test_where_there_is_an_nvml_there_is_a_probe(card: FakeNvml) -> None:
    probe = probe_for(UUID)
    assert probe is not None
    assert (probe.name, probe.absolute_bytes, probe.poll_s, probe.deadline_s) == ("nvml", GIB, 0.25, 10.0)
    card.set(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert probe_for(UUID) is None


def test_an_nvml_that_fails_is_a_probe_that_proves_nothing(card: FakeNvml) -> None:
    """Not "no probe": that would load after every kill, without a proof."""
    another = probe_for("GPU-another-machine")
    assert another is not None
    assert another.read(1) is None
    card.set(init_error=pynvml.NVML_ERROR_UNKNOWN)
    broken = probe_for(UUID)
    assert broken is not None
    assert broken.read(1) is None


def test_without_the_library_there_is_no_probe() -> None:
    if not _library_is_missing():
        pytest.skip("this machine has an NVML")
    assert probe_for(UUID) is None


def _library_is_missing() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return True
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return False
