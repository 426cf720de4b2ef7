"""Which models a card of a common size can serve, and with which options. Pure: the arithmetic is that of
`contracts/fit.py`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct

from contracts.checkpoints import Checkpoint
from contracts.fit import Components, alternatives, gb, need

MIB: Final = 1 << 20
# By the gigabytes that a card is sold with: the bytes that the driver reports for the smallest common card of that size
# (T4, L4, L40S, H100, H200).
CARDS: Final[Mapping[int, int]] = {
    16: 15_360 * MIB,
    24: 23_034 * MIB,
    48: 46_068 * MIB,
    80: 81_559 * MIB,
    141: 143_771 * MIB,
}
# Memory of a card that the driver reserves for itself.
DRIVER_BYTES: Final = 700_000_000


class Serving(Struct, frozen=True, kw_only=True):
    """One way to serve *model*: the options, the memory that they need on the card and on the host, and the *cards*
    that have enough.

    *cards* are those of `CARDS`, in gigabytes as sold. *pinned*: the host's part is locked memory.
    """

    model: str
    offload: Literal["none", "model", "group"]
    layerwise_casting: str | None
    card_bytes: int
    host_bytes: int
    pinned: bool
    cards: tuple[int, ...]

    @property
    def options(self) -> str:
        """The options in words."""
        return self.offload if self.layerwise_casting is None else f"{self.offload}, fp8"


def servings(model: str, components: Components | None, checkpoint: Checkpoint) -> Iterator[Serving]:
    """Every way to place the weights of *checkpoint*, the fastest first."""
    for other in alternatives(checkpoint):
        wanted = need(components, other, on_card=True)
        yield Serving(
            model=model,
            offload=other.offload,
            layerwise_casting=other.layerwise_casting,
            card_bytes=wanted.room_bytes,
            host_bytes=wanted.host_bytes,
            pinned=wanted.pinned,
            cards=tuple(card for card, total in CARDS.items() if wanted.room_bytes <= total - DRIVER_BYTES),
        )


def markdown(rows: Sequence[Serving]) -> str:
    """*rows* as a Markdown table for the documentation."""
    cards = "".join(f" {card} GB |" for card in CARDS)
    lines = [f"| model | options | on the card | on the host |{cards}", "|---" * (4 + len(CARDS)) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def ways(rows: Sequence[Serving]) -> str:
    """A Markdown table: for each of `CARDS` and each model the fastest way that keeps the weights as they are, and fp8
    if that is faster."""
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [f"| card | {' | '.join(models)} |", "|---" * (1 + len(models)) + "|"]
    for card in CARDS:
        ways_of = [_way([row for row in rows if row.model == model and card in row.cards]) for model in models]
        lines.append(f"| {card} GB | {' | '.join(ways_of)} |")
    return "\n".join(lines)


def _way(fitting: Sequence[Serving]) -> str:
    if not fitting:
        return "-"
    whole = next((row for row in fitting if row.layerwise_casting is None), None)
    found = [fitting[0]] if whole is None or whole == fitting[0] else [whole, fitting[0]]
    return "; or faster: ".join(f"`{row.options}`, {gb(row.card_bytes)}{_host(row)}" for row in found)


def _host(row: Serving) -> str:
    """The host's part in words, if the host holds the weights that are not in use."""
    return "" if row.offload == "none" else f" and {gb(row.host_bytes)} of {'pinned ' if row.pinned else ''}host memory"


def cells(row: Serving) -> list[str]:
    """One line of a table: model, options, card, host, and for each of `CARDS` whether it fits."""
    fits = ["yes" if card in row.cards else "-" for card in CARDS]
    return [row.model, row.options, gb(row.card_bytes), gb(row.host_bytes) + (", pinned" if row.pinned else ""), *fits]
