"""How a peer's worker reports when a task began: a line in the file that `BENCH_STARTED` names."""

import os
import time


def report_started(published_ns: int) -> None:
    """Reports that the task has just begun. It was about to be published at *published_ns*; both times are
    `time.time_ns`."""
    started_ns = time.time_ns()
    with open(os.environ["BENCH_STARTED"], "a") as file:
        file.write(f"{published_ns} {started_ns}\n")
