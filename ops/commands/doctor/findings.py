"""The findings of `warmlane doctor`, a line each, and their table."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from rich.markup import escape
from rich.table import Table

Level = Literal["ok", "note", "missing"]


class Finding(Struct, frozen=True, kw_only=True):
    """One line of the report. *missing* keeps `warmlane up` from working; *note* does not. *advice* says what to do."""

    what: str
    level: Level
    found: str
    advice: str = ""


def table_of(findings: Sequence[Finding]) -> Table:
    """The report."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(show_header=True)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.level], finding.what, escape(finding.found), escape(finding.advice))
    return table
