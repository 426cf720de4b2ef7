"""The instruments behind the metrics of `ops/telemetry/metrics.py`, and a list of all that were made.

They are those of the OpenTelemetry API: until `ops/telemetry/export.py` sets up an exporter, they do nothing.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final
from weakref import WeakSet

from msgspec import Struct
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

_meter = metrics.get_meter("warmlane")

# Exporters ask from threads of their own. They wait no longer than this for a busy event loop.
ANSWER_S: Final = 1.0
# The loops that did not answer in time, until they do: no exporter waits for each of their figures.
_hung = WeakSet[asyncio.AbstractEventLoop]()

Readings = Iterable[tuple[float, Sequence[str]]]
"""Values, each with the values of its labels."""
Source = Callable[[], Readings]


class Metric(Struct, frozen=True, kw_only=True):
    """A metric, with which the documentation, the dashboards and the alerts have to agree. *by* are the roles that
    report it."""

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    description: str
    by: tuple[str, ...]

    @property
    def prometheus_name(self) -> str:
        """Its name at `/metrics`, and behind a collector."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + unit + ("_total" if self.kind == "counter" else "")


ENTERED: Final[dict[str, Metric]] = {}
"""Every metric that was made, by its name."""


def _enter(name: str, kind: str, unit: str, labels: str, description: str, by: tuple[str, ...]) -> Metric:
    metric = Metric(name=name, kind=kind, unit=unit, labels=tuple(labels.split()), description=description, by=by)
    ENTERED[name] = metric
    return metric


class Counter:
    """Counts what this process did."""

    def __init__(self, name: str, labels: str, description: str, *, by: tuple[str, ...], unit: str = "") -> None:
        self.metric = _enter(name, "counter", unit, labels, description, by)
        # counted here, and read by exporters: that costs a request a tenth of what the API's own counter costs
        self._counts: dict[tuple[str, ...], float] = {}
        _meter.create_observable_counter(name, [self._observe], unit, description)

    def add(self, *values: str, by: float = 1) -> None:
        """Counts *by* more for the labels' *values*, in `metric.labels`' order. Raises ValueError for a wrong
        number."""
        if len(values) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name} has the labels {self.metric.labels}, not {len(values)}")
        self._counts[values] = self._counts.get(values, 0) + by

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        # a copy, made in one step: the exporter asks from a thread of its own
        for values, count in self._counts.copy().items():
            yield Observation(count, dict(zip(self.metric.labels, values, strict=True)))

    def begin(self, *values: str) -> None:
        """Shows 0 from now on. A series that begins with its first event hides that event from `increase()`."""
        self.add(*values, by=0)


class Histogram:
    """How long things took, in seconds."""

    def __init__(
        self, name: str, labels: str, description: str, *, by: tuple[str, ...], bounds_s: Sequence[float]
    ) -> None:
        self.metric = _enter(name, "histogram", "s", labels, description, by)
        self._instrument = _meter.create_histogram(
            name, "s", description, explicit_bucket_boundaries_advisory=[float(bound_s) for bound_s in bounds_s]
        )

    def record(self, value_s: float, *values: str) -> None:
        """Records *value_s* for the labels' *values*. Raises ValueError for a wrong number of them."""
        self._instrument.record(max(0.0, value_s), dict(zip(self.metric.labels, values, strict=True)))


class Gauge:
    """The newest figure."""

    def __init__(self, name: str, labels: str, description: str, *, by: tuple[str, ...], unit: str = "") -> None:
        self.metric = _enter(name, "gauge", unit, labels, description, by)
        self._instrument = _meter.create_gauge(name, unit, description)

    def set(self, value: float, *values: str) -> None:
        """Sets *value* for the labels' *values*. Raises ValueError for a wrong number of them."""
        self._instrument.set(value, dict(zip(self.metric.labels, values, strict=True)))


class Observed:
    """A figure that exporters read when they need it, from the sources that `observing` gives it."""

    def __init__(self, name: str, labels: str, description: str, *, by: tuple[str, ...], unit: str = "") -> None:
        self.metric = _enter(name, "gauge", unit, labels, description, by)
        self._sources: list[Callable[[], Readings]] = []
        _meter.create_observable_gauge(name, [self._observe], unit, description)

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        for ask in self._sources:
            for value, labels in ask():
                yield Observation(value, dict(zip(self.metric.labels, labels, strict=True)))

    @contextlib.contextmanager
    def _observing(self, source: Source, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        ask = partial(_asked_in, loop, source)
        self._sources.append(ask)
        try:
            yield
        finally:
            self._sources.remove(ask)


@contextlib.contextmanager
def observing(sources: Mapping[Observed, Source]) -> Iterator[None]:
    """While the block runs, *sources* give these figures. They are always called in the event loop that runs now."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for observed, source in sources.items():
            stack.enter_context(observed._observing(source, loop))
        yield


def _asked_in(loop: asyncio.AbstractEventLoop, source: Source) -> list[tuple[float, Sequence[str]]]:
    """What *source* reads in *loop*, for a caller in another thread; nothing where the loop does not answer in
    time."""
    answer: Future[list[tuple[float, Sequence[str]]]] = Future()

    def look() -> None:
        _hung.discard(loop)
        try:
            answer.set_result(list(source()))
        except Exception as error:
            answer.set_exception(error)

    if loop in _hung:
        return []
    with contextlib.suppress(RuntimeError):  # a loop that has ended
        loop.call_soon_threadsafe(look)
        try:
            return answer.result(timeout=ANSWER_S)
        except TimeoutError:
            _hung.add(loop)
    return []
