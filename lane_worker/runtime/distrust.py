"""A worker's distrust of itself after tasks that failed in a row (ADR 0026): `advice` decides, this logs and counts."""

import structlog

from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.streak import DISTRUST, Advice, advice, renewed, rested, words
from ops.telemetry import metrics

log = structlog.get_logger("distrust")


class Distrust:
    """What a worker does about the streak of its *runner*; *renew_after* as `advice` has it."""

    def __init__(self, runner: HostRunner, slot: str, *, renew_after: int) -> None:
        self._runner = runner
        self._slot = slot
        self._renew_after = renew_after

    def begin(self) -> None:
        """Sets the metric to 0 for every reason, so that the first increment shows."""
        for reason in DISTRUST:
            metrics.hosts_distrusted.begin(self._slot, reason)

    def advice(self) -> Advice:
        """What to do next."""
        return advice(self._runner.streak, renew_after=self._renew_after)

    def words(self) -> str:
        """The streak, for an operator."""
        return words(self._runner.streak)

    def renew(self) -> None:
        """The worker goes on in a fresh host."""
        log.error("renewed_after_failures", failures=self._runner.streak.failures)
        metrics.hosts_distrusted.add(self._slot, "in_a_row")
        self._runner.streak = renewed(self._runner.streak)

    def rest(self, pause_s: float) -> None:
        """The worker takes no task for *pause_s*; then it is `rested`."""
        log.error("rests_after_failures", failures=self._runner.streak.failures, pause_s=pause_s)
        metrics.hosts_distrusted.add(self._slot, "rest")

    def rested(self) -> None:
        """The worker is back in service."""
        self._runner.streak = rested(self._runner.streak)
