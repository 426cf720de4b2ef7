"""docs/operate/observability.md against the code: the metrics that there are, the panels and alerts that there are."""

import re

import pytest

from ops.telemetry.metrics import CATALOGUE, EVERYBODY
from tests.drills.observe_sight import DOCS, Row, rows
from tests.drills.observe_steps import STEPS as ACTS
from tests.drills.observe_steps import name_of
from tests.unit.ops.test_dashboards import ALERTS, DASHBOARDS, panels

DOC = DOCS.read_text(encoding="utf-8")
MUSTS = rows(DOC)
STEPS = {name_of(act) for act in ACTS}
ALIKE_UNTIL = "warmlane.requests.accepted"


def test_every_metric_is_explained_and_no_other() -> None:
    lines = [line for line in DOC.split("<!-- metrics -->")[1].splitlines() if line.startswith("| `")]
    found = {}
    for line in lines:
        name, labels, kind, description, by = (cell.strip() for cell in line.strip().strip("|").split("|"))
        roles = EVERYBODY if by == "every process" else tuple(by.split(", "))
        found[name.strip("`")] = (tuple(re.findall(r"`(\w+)`", labels)), kind, description, roles)
    alike = list(CATALOGUE)[: list(CATALOGUE).index(ALIKE_UNTIL)]
    assert found == {
        metric.prometheus_name: (
            metric.labels,
            f"{metric.kind}, alike" if name in alike else metric.kind,
            metric.description,
            metric.by,
        )
        for name, metric in CATALOGUE.items()
    }


@pytest.mark.parametrize("row", MUSTS, ids=lambda row: f"{row.cause}: {row.signal.replace('`', '')}")
def test_every_must_names_signals_that_exist(row: Row) -> None:
    assert row.cause in STEPS
    name = re.sub(r"\{.*", "", row.signal.split("`")[1])
    if not row.signal.startswith("metric"):
        assert (row.panel, row.alert) == ("", ""), "panels and alerts are of metrics"
        return
    assert name in {metric.prometheus_name for metric in CATALOGUE.values()}
    dashboard, _, title = row.panel.partition(": ")
    queries = [
        target["expr"]
        for panel in panels(DASHBOARDS[f"{dashboard}.json"])
        if panel["title"] == title
        for target in panel["targets"]
    ]
    assert any(name in query for query in queries), queries
    if row.alert:
        (rule,) = (rule for rule in ALERTS if rule["alert"] == row.alert)
        assert "warmlane_" in rule["expr"]


def test_every_alert_is_of_a_must_or_explained() -> None:
    """None stands there that the page does not name."""
    named = {row.alert for row in MUSTS}
    assert {rule["alert"] for rule in ALERTS} <= named | set(re.findall(r"`(Warmlane\w+)`", DOC))
