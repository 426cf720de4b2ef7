"""The NVML probe, through the real pynvml, on a fake library whose figures the tests set."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pynvml
import pytest

from ops.machine import nvml
from ops.machine.memory import probe_for
from ops.machine.nvml import DriverUnusable, NvmlProbe, list_gpus, survey, undivided_gpus
from ops.machine.readings import GIB, Holder, Reading
from tests.kit.fake_nvml import UUID, FakeNvml, fake_nvml


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


@pytest.fixture
def old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A card whose driver has no second version, no MIG and no list of processes in the form that is asked for."""
    with fake_nvml(tmp_path, monkeypatch, old=True) as card:
        yield card


def test_an_old_driver(old_card: FakeNvml) -> None:
    old_card.set(used_bytes=30 * GIB, reserved_bytes=GIB, processes=1, process_0=1)
    probe = NvmlProbe(UUID)
    assert probe.read(None) == Reading(used_bytes=31 * GIB, free_bytes=49 * GIB)
    assert probe.holders() == ()
    assert [(gpu.uuid, gpu.free_bytes, gpu.holders) for gpu in list_gpus()] == [(UUID, 49 * GIB, ())]
    assert undivided_gpus() == []


def test_another_error_is_not_answered_by_the_first_version(card: FakeNvml) -> None:
    card.set(used_bytes=30 * GIB, v2_error=pynvml.NVML_ERROR_UNKNOWN)
    assert NvmlProbe(UUID).read(None) is None


@pytest.mark.parametrize(
    "faults",
    [
        {"read_error": pynvml.NVML_ERROR_GPU_IS_LOST},
        {"read_error": pynvml.NVML_ERROR_UNKNOWN},
        {"read_error": pynvml.NVML_ERROR_UNINITIALIZED},
        {"init_error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED},
        {"init_error": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH},
        {"cards": 0},
    ],
    ids=["lost", "unknown", "uninitialised", "not-loaded", "updated-and-not-restarted", "unknown-uuid"],
)
def test_a_fault_is_a_missing_reading_until_it_is_over(card: FakeNvml, faults: dict[str, int]) -> None:
    probe = NvmlProbe(UUID)
    card.set(**faults)
    assert probe.read(None) is None
    assert probe.read(None) is None
    assert probe.trouble
    card.set(used_bytes=GIB)
    assert probe.read(None) == Reading(used_bytes=GIB, free_bytes=79 * GIB)
    assert probe.trouble == ""


@pytest.mark.parametrize(
    ("figures", "advice"),
    [
        ({"read_error": pynvml.NVML_ERROR_GPU_IS_LOST}, "fallen off its bus: restart the machine"),
        ({"read_error": pynvml.NVML_ERROR_RESET_REQUIRED}, "nvidia-smi --gpu-reset"),
        ({"read_error": pynvml.NVML_ERROR_UNKNOWN}, "look for Xid"),
        ({"read_error": pynvml.NVML_ERROR_NO_PERMISSION}, "/dev/nvidia"),
        ({"init_error": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}, "updated under the loaded kernel module"),
        ({"init_error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}, "modprobe nvidia"),
        ({"cards": 0}, "no such card is here"),
    ],
)
def test_what_the_driver_says_comes_with_what_to_do(card: FakeNvml, figures: dict[str, int], advice: str) -> None:
    probe = NvmlProbe(UUID)
    card.set(**figures)
    assert probe.read(None) is None
    assert advice in probe.trouble


def test_the_first_calls_may_fail(card: FakeNvml) -> None:
    card.set(used_bytes=GIB, first_fail=2, first_error=pynvml.NVML_ERROR_UNKNOWN)
    probe = NvmlProbe(UUID)
    assert [probe.read(None) is None for _ in range(3)] == [True, True, False]


# A card without memory of its own (GB10, Jetson)

NO_OWN_MEMORY: Final = {"v2_error": pynvml.NVML_ERROR_NOT_SUPPORTED, "read_error": pynvml.NVML_ERROR_NOT_SUPPORTED}


@pytest.mark.parametrize("figures", [NO_OWN_MEMORY, {"total_bytes": 0}], ids=["not-supported", "nought"])
def test_a_card_that_shares_the_hosts_memory_is_read_from_the_system(
    card: FakeNvml, figures: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.machine.nvml.available_bytes", lambda: 70 * GIB)
    card.set(processes=1, process_0=os.getpid(), process_0_bytes=GIB, **figures)
    probe = NvmlProbe(UUID)
    reading = probe.read(os.getpid())
    assert reading is not None
    assert probe.name == "unified"
    assert reading.free_bytes == 70 * GIB
    assert 0 < reading.used_bytes < psutil.virtual_memory().total
    assert reading.by_pid[os.getpid()] > GIB  # with what is resident in the host's memory
    (gpu,) = list_gpus()
    assert (gpu.unified, gpu.total_bytes, gpu.free_bytes) == (True, psutil.virtual_memory().total, 70 * GIB)


def test_a_card_that_has_reported_its_memory_does_not_share_the_hosts(card: FakeNvml) -> None:
    probe = NvmlProbe(UUID)
    assert probe.read(None) is not None
    card.set(**NO_OWN_MEMORY)
    assert (probe.read(None), probe.name) == (None, "nvml")


def test_an_instance_whose_memory_is_not_reported_does_not_share_the_hosts(card: FakeNvml) -> None:
    card.set({"GPU-fake-1": {"mig": 1, "instances": 1}}, **NO_OWN_MEMORY)
    probe = NvmlProbe("MIG-fake-1-0")
    assert (probe.read(None), probe.name) == (None, "nvml")


# One card of several fails, or is hidden


def test_a_card_that_is_lost_leaves_the_others(card: FakeNvml) -> None:
    card.set({"GPU-fake-1": {"read_error": pynvml.NVML_ERROR_GPU_IS_LOST}}, used_bytes=GIB, cards=3)
    found = survey({})
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-fake-2", "GPU-fake-3"]
    (text,) = found.broken
    assert text.startswith("card 0: ")
    assert [gpu.uuid for gpu in survey({"CUDA_VISIBLE_DEVICES": "1"}).gpus] == ["GPU-fake-2"]


def test_a_driver_that_fails_on_every_card_is_unusable(card: FakeNvml) -> None:
    card.set(cards=2, read_error=pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(DriverUnusable, match=r"card 0: .*; card 1: .*restart the machine"):
        list_gpus()


def test_what_the_operator_hides_is_not_listed(card: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    card.set(cards=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.uuid for gpu in list_gpus()] == ["GPU-fake-2"]
    assert survey().hidden == ("GPU-fake-1",)


def test_a_falling_figure(card: FakeNvml) -> None:
    card.set(used_bytes=6 * GIB, fall_bytes=2 * GIB, least_bytes=GIB)
    probe = NvmlProbe(UUID)
    readings = [probe.read(None) for _ in range(4)]
    assert [reading and reading.used_bytes // GIB for reading in readings] == [6, 4, 2, 1]


def test_where_there_is_an_nvml_there_is_a_probe(card: FakeNvml) -> None:
    probe = probe_for(UUID)
    assert probe is not None
    assert (probe.name, probe.absolute_bytes, probe.poll_s, probe.deadline_s) == ("nvml", 512 << 20, 0.25, 10.0)
    card.set(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert probe_for(UUID) is None


def test_an_nvml_that_fails_is_a_probe_that_proves_nothing(card: FakeNvml) -> None:
    """It is not "no probe", because then the worker would load after every kill without a proof."""
    another = probe_for("GPU-another-machine")
    assert another is not None
    assert another.read(1) is None
    for code in (pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
        card.set(init_error=code)
        broken = probe_for(UUID)
        assert broken is not None
        assert broken.read(1) is None


def test_a_driver_that_hangs_is_a_probe_that_proves_nothing(
    card: FakeNvml, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(nvml, "ANSWER_S", 0.05)
    card.set(hangs=1)
    request.addfinalizer(_let_go(card))
    assert probe_for(UUID) is not None
    with pytest.raises(DriverUnusable, match=r"within 0\.05 s"):
        list_gpus()


def _let_go(card: FakeNvml) -> Callable[[], None]:
    """The driver answers again, and the threads that it held come to their end while their library is there."""

    def finish() -> None:
        card.set(used_bytes=GIB)
        for thread in threading.enumerate():
            if thread.name == "nvml":
                thread.join()

    return finish


# What CUDA can use


def test_the_cards_of_a_machine(card: FakeNvml) -> None:
    card.set({"GPU-fake-2": {"used_bytes": 79 * GIB}}, used_bytes=GIB, cards=2)
    assert [(gpu.uuid, gpu.name, gpu.total_bytes, gpu.free_bytes) for gpu in list_gpus()] == [
        ("GPU-fake-1", "Fake 80GB", 80 * GIB, 79 * GIB),
        ("GPU-fake-2", "Fake 80GB", 80 * GIB, GIB),
    ]


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND])
def test_without_a_driver_there_are_no_cards(card: FakeNvml, code: int) -> None:
    card.set(init_error=code)
    assert list_gpus() == []
    assert undivided_gpus() == []


def test_a_driver_that_was_updated_without_a_restart_is_reported(card: FakeNvml) -> None:
    card.set(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(DriverUnusable, match="version mismatch"):
        list_gpus()


def test_a_card_that_is_lost_is_reported(card: FakeNvml) -> None:
    card.set(read_error=pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(DriverUnusable, match="GPU is lost"):
        list_gpus()


def test_a_card_in_mig_mode_is_its_instances(card: FakeNvml) -> None:
    """Those that there are, in places 0 and 2; the card itself CUDA cannot use."""
    card.set({"GPU-fake-1": {"mig": 1, "instances": 0b101}, "MIG-fake-1-2": {"total_bytes": 10 * GIB}}, cards=3)
    assert [(gpu.uuid, gpu.total_bytes) for gpu in list_gpus()] == [
        ("MIG-fake-1-0", 80 * GIB),
        ("MIG-fake-1-2", 10 * GIB),
        ("GPU-fake-2", 80 * GIB),
        ("GPU-fake-3", 80 * GIB),
    ]
    assert undivided_gpus() == []


def test_a_card_in_mig_mode_without_an_instance_is_of_no_use(card: FakeNvml) -> None:
    card.set({"GPU-fake-2": {"mig": 1}}, cards=2)
    assert [gpu.uuid for gpu in list_gpus()] == ["GPU-fake-1"]
    assert undivided_gpus() == ["GPU-fake-2"]


@pytest.mark.parametrize("figures", [{"mig_pending": 1}, {"mig_error": pynvml.NVML_ERROR_NOT_SUPPORTED, "mig": 1}])
def test_a_card_that_is_not_in_mig_mode_yet_or_never_will_be(card: FakeNvml, figures: dict[str, int]) -> None:
    card.set(**figures)
    assert [gpu.uuid for gpu in list_gpus()] == ["GPU-fake-1"]


def test_the_memory_of_an_instance(card: FakeNvml) -> None:
    its = {"total_bytes": 10 * GIB, "used_bytes": 4 * GIB}
    card.set({"GPU-fake-1": {"mig": 1, "instances": 0b10}, "MIG-fake-1-1": its}, used_bytes=70 * GIB)
    probe = NvmlProbe("MIG-fake-1-1")
    assert probe.read(None) == Reading(used_bytes=4 * GIB, free_bytes=6 * GIB)


def test_the_handle_of_an_instance_that_was_removed_is_not_kept(card: FakeNvml) -> None:
    """The driver may give it to another instance, whose memory would prove the release of this one."""
    card.set({"GPU-fake-1": {"mig": 1, "instances": 0b10}})
    probe = NvmlProbe("MIG-fake-1-1")
    assert probe.read(None) is not None
    card.set({"GPU-fake-1": {"mig": 1, "instances": 0b01}})
    assert probe.read(None) is None


# Who holds it


def test_who_holds_the_memory_of_a_card(card: FakeNvml) -> None:
    ours = os.getpid()
    card.set(
        used_bytes=GIB,
        processes=2,
        process_0=4_000_000_000,
        process_1=ours,
        process_1_bytes=GIB // 2,
    )
    name = psutil.Process(ours).name()
    holders = NvmlProbe(UUID).holders()
    assert holders == (
        Holder(pid=ours, used_bytes=GIB // 2, name=name),
        Holder(pid=4_000_000_000, used_bytes=None),  # the number of a process that is not seen here
    )
    assert [str(holder) for holder in holders] == [
        f"process {ours} ({name}) holds 0.50 GiB",
        "process 4000000000 holds an unknown amount",
    ]
    assert [gpu.holders for gpu in list_gpus()] == [holders]


def test_nobody_holds_a_card(card: FakeNvml) -> None:
    assert NvmlProbe(UUID).holders() == ()


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NOT_SUPPORTED])
def test_a_driver_that_lists_no_processes_is_no_fault_of_the_card(card: FakeNvml, code: int) -> None:
    card.set(used_bytes=GIB, processes_error=code)
    probe = NvmlProbe(UUID)
    assert probe.holders() == ()
    assert probe.read(None) == Reading(used_bytes=GIB, free_bytes=79 * GIB)
    assert [gpu.holders for gpu in list_gpus()] == [()]


def test_a_card_that_is_not_there_has_no_holders(card: FakeNvml) -> None:
    assert NvmlProbe("GPU-another-machine").holders() == ()


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
