"""Which slots the workers get, and how many lanes are wanted."""

from pathlib import Path

import click
import pynvml
import pytest

from contracts.settings import Catalog
from ops.machine.nvml import GpuInfo
from ops.machine.placement import Slots, given_slot, refuse_hidden, slots, wanted_lanes
from tests.kit.fake_nvml import fake_nvml


def cards(count: int) -> list[GpuInfo]:
    return [GpuInfo(uuid=f"GPU-{index}", name="H100", total_bytes=1, free_bytes=1) for index in range(count)]


@pytest.mark.parametrize(
    ("profile", "lanes", "gpus", "expected"),
    [
        pytest.param("tiny", 2, None, Slots("cpu-2", ("cpu-0", "cpu-1")), id="a-cpu-slot-for-each-worker"),
        pytest.param("tiny", 0, None, Slots("cpu-0", ()), id="degraded-only"),
        pytest.param("tiny", 2, 3, Slots("cpu-2", ("cpu-0", "cpu-1")), id="3-are-enough-for-2"),
        pytest.param("tiny", 2, 2, Slots("cpu-1", ("cpu-0",)), id="2-leave-one"),
        pytest.param("tiny", 2, 1, Slots("cpu-0", ()), id="1-leaves-none"),
        pytest.param("production", 2, None, Slots("GPU-0", ("GPU-1", "GPU-2", "GPU-3")), id="all-cards"),
        pytest.param("production", 9, 9, Slots("GPU-0", ("GPU-1", "GPU-2", "GPU-3")), id="no-more-than-there-are"),
        pytest.param("production", 2, 2, Slots("GPU-0", ("GPU-1",)), id="2-cards-leave-one"),
        pytest.param("production", 2, 1, Slots("GPU-0", ()), id="1-card-leaves-none"),
    ],
)
def test_slots(profile: str, lanes: int, gpus: int | None, expected: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.machine.placement.list_gpus", lambda: cards(4))
    assert slots(profile, lanes=lanes, gpus=gpus) == expected


def test_a_machine_without_a_card_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.machine.placement.list_gpus", lambda: [])
    monkeypatch.setattr("ops.machine.placement.undivided_gpus", lambda: [])
    with pytest.raises(click.ClickException, match=r"no NVIDIA card, .*--profile tiny"):
        slots("production", lanes=2, gpus=None)


def test_a_card_without_an_instance_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.machine.placement.list_gpus", lambda: [])
    monkeypatch.setattr("ops.machine.placement.undivided_gpus", lambda: ["GPU-7"])
    with pytest.raises(click.ClickException, match=r"GPU-7: in MIG mode, .*`warmlane doctor`"):
        slots("production", lanes=2, gpus=None)


def test_a_worker_takes_the_only_card_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod: what its device plugin or its claim left it."""
    monkeypatch.setattr("socket.gethostname", lambda: "lane-anisora-7d9f.example")
    assert given_slot("auto", "tiny") == "cpu-lane-anisora-7d9f"
    with fake_nvml(tmp_path, monkeypatch) as card:
        card.set(cards=2)
        assert given_slot("GPU-fake-2", "production") == "GPU-fake-2"
        with pytest.raises(click.ClickException, match=r"here are GPU-fake-1, GPU-fake-2: name one or"):
            given_slot("auto", "production")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert given_slot("auto", "production") == "GPU-fake-2"
        card.set(cards=0)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with pytest.raises(click.ClickException, match="no NVIDIA card"):
            given_slot("auto", "production")


def test_cards_that_the_operator_hides_are_no_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a worker take one of them where it is named."""
    with fake_nvml(tmp_path, monkeypatch) as card:
        card.set(cards=3)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-fake-1")
        assert slots("production", lanes=2, gpus=None) == Slots("GPU-fake-3", ())
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
        assert slots("production", lanes=2, gpus=None) == Slots("GPU-fake-3", ("GPU-fake-2",))
        refuse_hidden("GPU-fake-2")
        refuse_hidden("cpu-0")
        with pytest.raises(click.BadParameter, match="'2,1' hides GPU-fake-1"):
            refuse_hidden("GPU-fake-1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        with pytest.raises(click.ClickException, match="hides all cards of this machine, which are GPU-fake-1, "):
            slots("production", lanes=2, gpus=None)
        card.set(init_error=pynvml.NVML_ERROR_UNKNOWN)
        refuse_hidden("GPU-fake-1")  # the worker waits for the driver


def test_the_settings_want_at_least_one_of_each(catalog: Catalog) -> None:
    assert wanted_lanes(None, catalog) == {"anisora": 1, "phr00t": 1}


def test_what_was_asked_for_stands_in_the_place_of_the_settings(catalog: Catalog) -> None:
    assert wanted_lanes({"anisora": 0}, catalog) == {"anisora": 0}
    with pytest.raises(click.ClickException, match="no model is called sora"):
        wanted_lanes({"sora": 1}, catalog)
