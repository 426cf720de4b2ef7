"""`make observe`: causes all that an operator must be able to see (docs/operate/observability.md), and looks for it.

One system runs with an OTLP receiver, which passes all spans on to the real Jaeger where there is one
(`tests/kit/jaeger.py`). Each step causes something. What changes meanwhile in the metrics, the logs and the traces is
what the step shows. `tests/e2e/test_observe.py` plays the same steps.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.drills.observe_sight import DOCS, Row, Sight, rows
from tests.drills.observe_stage import Stage
from tests.drills.observe_steps import play
from tests.kit.jaeger import MISSING, Jaeger


def warnings_of(jaeger: Jaeger) -> list[str]:
    """The warnings of Jaeger about the traces of all services."""
    traces = [trace for service in jaeger.get("/api/services") for trace in jaeger.find(service)]
    return sorted(
        {
            f"{span['operationName']}: {warning}"
            for trace in traces
            for span in trace["spans"]
            for warning in span.get("warnings") or []
        }
    )


def report(console: Console, stage: Stage, musts: Sequence[Row]) -> int:
    """Prints every line of the table with what was seen, and Jaeger's warnings. Returns how many lines were not seen,
    plus the number of warnings."""
    table = Table(title="What operators must be able to see")
    for column in ("requirement", "signal", "caused by", "seen"):
        table.add_column(column, overflow="fold")
    sight = Sight(stage)
    missing = 0
    last = ""
    for row in musts:
        seen = sight.seen_at_last(row)
        missing += not seen
        signal_text = row.signal.replace("`", "")
        table.add_row(
            "" if row.requirement == last else row.requirement, signal_text, row.cause, seen or "[red]nothing[/]"
        )
        last = row.requirement
    console.print(table)
    if stage.jaeger is None:
        console.print(f"{MISSING}: what it shows was not looked at")
    else:
        warnings = warnings_of(stage.jaeger)
        missing += len(warnings)
        traces = len(stage.jaeger.find("warmlane-gateway"))
        console.print(
            f"Jaeger keeps {traces} traces of the gateway; of its warnings there are {len(warnings)}", *warnings
        )
    console.print(f"{len(musts) - missing} of {len(musts)} signals seen")
    return missing


@click.command(epilog="Example:\n\n  python -m tests.drills.observe")
def main() -> None:
    """Start a system with an OTLP receiver, cause what an operator must be able to see, and print what was seen."""
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        try:
            with console.status("starting") as status:
                asyncio.run(play(stage, status.update))
                missing = report(console, stage, rows(DOCS.read_text(encoding="utf-8")))
        finally:
            stage.close()
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
