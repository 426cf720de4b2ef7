"""A round of one contender: warmed up, driven as hard as it goes, then at half of that."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from tests.bench.load import closed, paced, percentile, require_expected
from tests.bench.procs import Watch
from tests.bench.results import Series
from tests.bench.stacks import Stack

CONNECTIONS: Final = 32
# The share of the measured time that comes before it, to fill caches and pools.
WARM_UP: Final = 0.25

T = TypeVar("T")


class Values:
    """The values of each contender and figure, a value for each round."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, contender: str, figures: Mapping[str, float]) -> None:
        """Adds one round of *contender*."""
        for figure, value in figures.items():
            self._values[contender, figure].append(value)

    def series(self) -> tuple[Series, ...]:
        return tuple(
            Series(contender=contender, figure=figure, values=tuple(values))
            for (contender, figure), values in self._values.items()
        )


async def one_round(stack: Stack, data: bytes, *, what: str, expected: int, seconds: float) -> dict[str, float]:
    """The figures of `tests.bench.results.FIGURES` for the request *data*.

    Throughput and CPU come from *seconds* with 32 connections that ask all the time. Latencies come from *seconds* at
    half of that throughput, counted from the moment at which each request was due. Raises LoadFailed, NotStarted.
    """
    address = stack.address

    async def hard(for_s: float) -> float:
        load = await closed(address, data, connections=CONNECTIONS, seconds=for_s, expected=expected)
        return require_expected(load, what).per_s

    await hard(seconds * WARM_UP)
    watch = Watch(stack.served, stack.brokers)
    load = await closed(address, data, connections=CONNECTIONS, seconds=seconds, expected=expected)
    used = watch.end()
    thousands = len(require_expected(load, what).latencies_s) / 1_000
    rate_per_s = load.per_s / 2
    half = await paced(
        address, data, rate_per_s=rate_per_s, seconds=seconds, connections=2 * CONNECTIONS, expected=expected
    )
    require_expected(half, f"{what}, at {rate_per_s:.0f} a second")
    stack.require_running()
    return {
        "per_s": load.per_s,
        "p50_ms": percentile(half.latencies_s, 50) * 1e3,
        "p99_ms": percentile(half.latencies_s, 99) * 1e3,
        "cpu_s": used.served_s / thousands,
        "broker_cpu_s": used.brokers_s / thousands,
        "busy_percent": used.busy_percent,
        "peak_mb": used.peak_bytes / 1e6,
        "others_percent": used.others_percent,
    }


def rotated(items: Sequence[T], by: int) -> list[T]:
    """*items* rotated, so that each round has another one first. Pure."""
    by %= len(items)
    return [*items[by:], *items[:by]]


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder that is removed with all that is in it."""
    with tempfile.TemporaryDirectory(prefix="warmlane-bench-") as folder:
        yield Path(folder)
