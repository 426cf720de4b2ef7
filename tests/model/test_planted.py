"""The model finds bugs: it finds each planted one, by the seed that found it first or by a search."""

import pytest

from tests.model.drive import drive
from tests.model.invariants import Violation
from tests.model.patches import simulated_product
from tests.model.planted import PLANTS, WEBHOOKS, Plant

# A change of the code changes the turns of a run: where the seed does not show the bug any more, a search does.
SEARCHED: int = 1_500


def broken_by(seed: int, *, with_webhooks: bool) -> str | None:
    """The number of the invariant that the run of *seed* breaks."""
    try:
        drive(seed, with_webhooks=with_webhooks)
    except Violation as violation:
        return str(violation).partition(":")[0]
    return None


@pytest.mark.parametrize(("plant", "invariant", "seed"), PLANTS, ids=[plant.__name__ for plant, _, _ in PLANTS])
def test_a_planted_bug_is_found(plant: Plant, invariant: str, seed: int) -> None:
    with simulated_product(), plant():
        assert invariant in (
            broken_by(tried, with_webhooks=invariant == WEBHOOKS) for tried in (seed, *range(SEARCHED))
        )


def test_the_seeds_show_the_bugs_and_nothing_else() -> None:
    with simulated_product():
        found = [broken_by(seed, with_webhooks=invariant == WEBHOOKS) for _, invariant, seed in PLANTS]
        assert found == [None] * len(PLANTS)
