"""The dashboards and alert rules as files: complete, readable, and about metrics that exist. promtool checks their
queries."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from msgspec import Struct

from tests.kit.observed import ALIKE, COUNTED, METRICS, OWN, metric_of, values_of
from tests.unit.test_docs import command

OPS: Final = Path(__file__).parents[3] / "ops"
DASHBOARDS: Final = {path.name: json.loads(path.read_text()) for path in sorted((OPS / "dashboards").glob("*.json"))}
RULES: Final = [
    rule
    for group in yaml.safe_load((OPS / "alerts" / "warmlane.rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS: Final = [rule for rule in RULES if "alert" in rule]
RECORDED: Final = {rule["record"]: rule for rule in RULES if "record" in rule}
# The headings of ops/runbook.md, as GitHub makes anchors of them.
RUNBOOK: Final = frozenset(
    heading.lower().replace("'", "").replace(" ", "-")
    for heading in re.findall(r"^## (.+)$", (OPS / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
)

# A function or an aggregation up to its parenthesis, its end, or a series with its matchers.
_PART: Final = re.compile(
    r"(?P<call>\b[a-z_0-9]+)?(?: by \((?P<by>[\w, ]+)\))? ?\(|(?P<end>\))"
    r"|(?P<series>\b(?:warmlane_\w+|ALERTS)\b)(?:\{(?P<matchers>[^}]*)\})?"
)
_MATCHER: Final = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_AGGREGATIONS: Final = frozenset({"sum", "min", "max", "count", "avg"})


class Selector(Struct, frozen=True):
    """A series in an expression, its matchers, and the aggregation that stands closest around it."""

    series: str
    matchers: tuple[tuple[str, str, str], ...]
    aggregation: str | None


def selectors(expr: str) -> list[Selector]:
    """Every series that *expr* reads."""
    found: list[Selector] = []
    around: list[str | None] = []
    for part in _PART.finditer(expr):
        if part["series"]:
            inner = [call for call in around if call in _AGGREGATIONS]
            matchers = tuple((one[1], one[2], one[3]) for one in _MATCHER.finditer(part["matchers"] or ""))
            found.append(Selector(part["series"], matchers, inner[-1] if inner else None))
        elif part["end"]:
            around.pop()
        else:
            around.append(part["call"])
    assert not around, expr
    return found


def groupings(expr: str) -> list[frozenset[str]]:
    """The labels of every `by (…)` of *expr*."""
    return [frozenset(part["by"].split(", ")) for part in _PART.finditer(expr) if part["by"]]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with queries."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Where each expression stands, and the expression."""
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", target["expr"]
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]


QUERIES: Final = dict(queries())


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def unique(values: Sequence[object]) -> bool:
    return len(set(values)) == len(values)


def test_dashboards_have_titles_and_numbers_of_their_own() -> None:
    assert {"overview.json", "memory.json", "capacity.json"} <= set(DASHBOARDS)
    for key in ("uid", "title"):
        assert unique([dashboard[key] for dashboard in DASHBOARDS.values()])
    for dashboard in DASHBOARDS.values():
        assert re.fullmatch(r"[a-z-]{1,40}", dashboard["uid"])
        assert "id" not in dashboard, "the number is Grafana's own"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard(name: str) -> None:
    """Grafana shows the dashboard unchanged, and each panel says what to do."""
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] >= 39
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "model"} <= variables
    assert unique([panel["id"] for panel in dashboard["panels"]])
    assert unique([panel["title"] for panel in dashboard["panels"]])
    for one, other in combinations(dashboard["panels"], 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    for panel in dashboard["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    for panel in panels(dashboard):
        assert len(panel["description"]) > 60, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in {"none", "s", "bytes", "percentunit"}, panel["title"]
        assert panel["targets"]
        assert unique([target["refId"] for target in panel["targets"]])
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?([a-z]\w*)", target["expr"]))
            assert used <= variables, (panel["title"], used)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_legends_name_labels_that_are_left(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        for target in panel["targets"]:
            outer = next(iter(groupings(target["expr"])), frozenset()) - {"le"}
            if panel["type"] == "table":
                assert "legendFormat" not in target
                continue
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= outer, panel["title"]
        assert panel["type"] == "table" or unique([target["legendFormat"] for target in panel["targets"]])


@pytest.mark.parametrize("place", QUERIES)
def test_a_query_asks_for_metrics_that_exist(place: str) -> None:
    """Metrics, labels and values exist: with a wrong one a panel stays empty, or an alert never fires."""
    expr, grouped = QUERIES[place], set[str]()
    known = {"le", "job", "instance"}
    for selector in selectors(expr):
        if selector.series == "ALERTS":
            known |= {"alertname", "severity", *(label for rule in RULES for label in labels_of(rule["expr"]))}
            continue
        metric = metric_of(selector.series)
        known |= set(metric.labels)
        for label, operator, wanted in selector.matchers:
            assert label in metric.labels, (place, label)
            asked = wanted.split("|") if "~" in operator else [wanted]
            assert wanted == f"${label}" or set(asked) <= set(values_of(metric, label)), (place, label, wanted)
    for by in groupings(expr):
        grouped |= by
    assert grouped <= known, place
    assert selectors(expr) or any(name in expr for name in RECORDED), place


def labels_of(expr: str) -> frozenset[str]:
    """What is left of an expression's labels: those of its first `by`."""
    return next(iter(groupings(expr)), frozenset())


@pytest.mark.parametrize("place", QUERIES)
def test_gateways_are_not_added_up(place: str) -> None:
    """Figures that two gateways report alike would count twice; figures that each counts by itself have to be
    summed."""
    for selector in selectors(QUERIES[place]):
        name = selector.series
        if name == "ALERTS":
            continue
        metric = metric_of(name).name
        if metric in ALIKE:
            is_absent = f"absent({name})" in QUERIES[place]
            assert is_absent or selector.aggregation in {"min", "max"}, (place, name)
        elif metric in OWN:
            assert selector.aggregation in {"min", "max"}, (place, name)
        elif metric in COUNTED:
            assert selector.aggregation == "sum", (place, name)


def test_every_metric_is_shown() -> None:
    shown = {
        metric_of(selector.series).name
        for place, expr in QUERIES.items()
        if ".json" in place
        for selector in selectors(expr)
        if selector.series != "ALERTS"
    }
    assert shown == METRICS.keys()


def test_alerts_say_what_to_do() -> None:
    assert unique([rule["alert"] for rule in ALERTS])
    for rule in ALERTS:
        name, annotations = rule["alert"], rule["annotations"]
        assert name.startswith("Warmlane"), name
        assert rule["labels"].keys() == {"severity"}, name
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert annotations.keys() == {"summary", "description", "runbook"}, name
        assert len(annotations["description"]) > 100, name
        file, _, anchor = annotations["runbook"].partition("#")
        assert file == "ops/runbook.md", name
        assert anchor in RUNBOOK, name
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())))
        assert used <= labels_of(rule["expr"]), name


def test_commands_that_alerts_and_panels_name_exist() -> None:
    texts = [rule["annotations"]["description"] for rule in ALERTS]
    texts += [panel["description"] for dashboard in DASHBOARDS.values() for panel in panels(dashboard)]
    named = {name for text in texts for name in re.findall(r"`warmlane ([a-z-]+)", text)}
    assert {"status", "slots", "lane-mode"} <= named
    for name in named:
        command(name)


def test_every_alert_has_cases() -> None:
    """One that fires, and silence before it and after it, in this order, in the same run."""
    cases: dict[str, list[list[bool]]] = {rule["alert"]: [] for rule in ALERTS}
    for test in yaml.safe_load((OPS / "alerts" / "warmlane.tests.yaml").read_text())["tests"]:
        for name in {case["alertname"] for case in test["alert_rule_test"]}:
            fires = [bool(case.get("exp_alerts")) for case in test["alert_rule_test"] if case["alertname"] == name]
            cases[name].append(fires)
    for name, runs in cases.items():
        assert any(not run[0] and True in run and not run[-1] for run in runs), name
