"""The cards of a machine that CUDA_VISIBLE_DEVICES leaves visible, read as CUDA does."""

from typing import Final

import pytest

from ops.machine.visible_cards import AmbiguousOrder, Card, visible_slots

CARDS: Final = [
    Card("GPU-11aa", "H100", ("GPU-11aa",)),
    Card("GPU-11bb", "H100", ("GPU-11bb",)),
    Card("GPU-22cc", "H100", ("MIG-5d", "MIG-5e")),
    Card("card 3", "", ()),  # it is lost, and keeps its number
    Card("GPU-44dd", "H100", ("GPU-44dd",)),
]
ALL: Final = ["GPU-11aa", "GPU-11bb", "MIG-5d", "MIG-5e", "GPU-44dd"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, ALL, id="1-not-set"),
        pytest.param("GPU-11bb", ["GPU-11bb"], id="2-uuid"),
        pytest.param("GPU-4,GPU-11a", ["GPU-44dd", "GPU-11aa"], id="2-beginnings-in-their-order"),
        pytest.param("GPU-2", ["MIG-5d", "MIG-5e"], id="2-card-in-mig-mode-is-its-instances"),
        pytest.param("MIG-5e", ["MIG-5e"], id="2-instance"),
        pytest.param("MIG-5e,MIG-5d", ["MIG-5e", "MIG-5d"], id="2-instances"),
        pytest.param("MIG-5e,GPU-11aa", ["MIG-5e"], id="2-of-one-form-only"),
        pytest.param("GPU-11aa,MIG-5e", ["GPU-11aa"], id="2-of-one-form-only-2"),
        pytest.param("GPU-11aa,1", ["GPU-11aa"], id="2-no-index-among-uuids"),
        pytest.param("1", ["GPU-11bb"], id="3-index"),
        pytest.param("4,0", ["GPU-44dd", "GPU-11aa"], id="3-in-their-order"),
        pytest.param(" 1 ,0", ["GPU-11bb", "GPU-11aa"], id="3-blanks"),
        pytest.param("1gpu", ["GPU-11bb"], id="3-begins-with-a-number"),
        pytest.param("2", ["MIG-5d", "MIG-5e"], id="3-card-in-mig-mode-is-its-instances"),
        pytest.param("3,4", ["GPU-44dd"], id="3-a-lost-card-counts"),
        pytest.param("", [], id="4-empty"),
        pytest.param("-1", [], id="4-none"),
        pytest.param("NoDevFiles", [], id="4-a-word"),
        pytest.param("1,-1,0", ["GPU-11bb"], id="4-after-an-invalid-one"),
        pytest.param("0,9,1", ["GPU-11aa"], id="4-after-one-too-many"),
        pytest.param("0,,1", ["GPU-11aa"], id="4-after-an-empty-one"),
        pytest.param("GPU-11", [], id="4-ambiguous"),
        pytest.param("GPU-11aa,GPU-99,GPU-11bb", ["GPU-11aa"], id="4-after-an-unknown-one"),
        pytest.param("MIG-5", [], id="4-ambiguous-instance"),
        pytest.param("0,0", [], id="5-index-twice"),
        pytest.param("GPU-11a,GPU-11aa", [], id="5-card-twice"),
        pytest.param("MIG-5d,MIG-5d", [], id="5-instance-twice"),
    ],
)
def test_visible_slots(value: str | None, expected: list[str]) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert visible_slots(CARDS, environ) == expected


MIXED: Final = [Card("GPU-a", "RTX 4000", ("GPU-a",)), Card("GPU-b", "H100", ("GPU-b",))]


def test_indices_of_cards_of_several_kinds_need_an_order() -> None:
    """Index 0 is the H100 for CUDA, and the other card for the driver."""
    with pytest.raises(AmbiguousOrder, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_slots(MIXED, {"CUDA_VISIBLE_DEVICES": "0"})
    with pytest.raises(AmbiguousOrder):
        visible_slots(MIXED, {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    by_bus = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_slots(MIXED, by_bus) == ["GPU-a"]


@pytest.mark.parametrize(("value", "expected"), [("GPU-b", ["GPU-b"]), ("", []), ("-1", []), ("7", [])])
def test_what_counts_nothing_needs_none(value: str, expected: list[str]) -> None:
    assert visible_slots(MIXED, {"CUDA_VISIBLE_DEVICES": value}) == expected
