"""The metrics of the test's own process, for parts that a test runs in it."""

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


class Measured:
    """Reads the metrics. A process may have only one: OpenTelemetry accepts no second provider."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([self._reader], shutdown_on_exit=False))

    def value(self, name: str, **labels: str) -> float:
        """The sum of all series of the metric *name* with *labels*; 0 where there is none."""
        data = self._reader.get_metrics_data()
        found = 0.0
        for resource in () if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points if metric.name == name else ():
                        if labels.items() <= dict(point.attributes or {}).items():
                            found += getattr(point, "value", 0.0)
        return found
