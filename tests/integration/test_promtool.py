"""promtool, of Debian's package prometheus, judges every alert and every panel's query."""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.kit.observed import series
from tests.unit.ops.test_dashboards import DASHBOARDS, OPS, RULES, panels

RULES_FILE: Final = OPS / "alerts" / "warmlane.rules.yaml"
TESTS_FILE: Final = OPS / "alerts" / "warmlane.tests.yaml"
# The values that Grafana substitutes for its variables.
GRAFANA: Final = {"$__rate_interval": "5m", "$__interval": "1m", "$model": "(anisora|phr00t)", "$slot": "(cpu-0|cpu-2)"}
_THRESHOLD: Final = re.compile(r"(?<=[<>=] )(-?[\d.]+(?:e\d+)?)(?! [+*])")
_COMPARISON: Final = re.compile(r"(?<= )([<>=]=?)(?= )")
_MATCHER: Final = re.compile(r'\w+(?:=~|!~|!=|=)"[^"]*"')
_OPPOSITE: Final = {">": "<=", "<": ">=", "==": "!="}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What promtool prints, on either output, in order. Skips the test where it is not installed."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("no promtool: apt install prometheus")
    return subprocess.run(
        [path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120
    )


def test_the_alerts() -> None:
    """Each alert is silent, fires with exactly the expected words, and resolves when `ops/alerts/warmlane.tests.yaml`
    says so."""
    said = promtool("test", "rules", TESTS_FILE)
    assert said.returncode == 0, said.stdout


def test_every_panel_shows_something_of_a_busy_system(tmp_path: Path) -> None:
    """Prometheus accepts every query, and each gives a number when every possible series is present."""
    asked = {}
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                asked[as_sent(target["expr"])] = f"{name}: {panel['title']} {target['refId']}"
    inputs = [{"series": name, "values": values} for name, values in series()]
    inputs += [{"series": f'ALERTS{{alertname="{RULES[0]["alert"]}",alertstate="firing"}}', "values": "1x90"}]
    cases = [
        # NaN does not count: it is not at or above anything
        {"expr": f"count(({expr}) >= -Inf) > bool 0", "eval_time": "90m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for expr in asked
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": cases}]}))
    said = promtool("test", "rules", file)
    empty = [place for expr, place in asked.items() if f"({expr})" in said.stdout]
    assert said.returncode == 0, f"{empty}\n{said.stdout}"


def as_sent(expr: str) -> str:
    """*expr* with Grafana's variables replaced, as Prometheus gets it."""
    for variable, value in GRAFANA.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr, expr
    return expr


def test_the_cases_of_an_alert_fail_when_it_is_changed(tmp_path: Path) -> None:
    """A threshold a quarter higher or lower, a reversed comparison, a missing matcher, another `for`: the cases of that
    alert notice each of them. Without this a case might pass whatever the rule says.
    """
    tests = yaml.safe_load(TESTS_FILE.read_text())
    recorded = [rule for rule in RULES if "record" in rule]
    files = {}
    for rule in RULES:
        if "alert" not in rule:
            continue
        cases = [test for test in tests["tests"] if test["alert_rule_test"][0]["alertname"] == rule["alert"]]
        # a rule without `for` is judged only at the moments of its cases, which costs less
        moments_min = [int(case["eval_time"].removesuffix("m")) for test in cases for case in test["alert_rule_test"]]
        run = tests | {"tests": cases, "evaluation_interval": "1m" if "for" in rule else f"{math.gcd(*moments_min)}m"}
        for number, (change, changed) in enumerate([("nothing", rule), *changes(rule)]):
            name = f"{rule['alert']}-{number}"
            rules = tmp_path / f"{name}.rules.yaml"
            needed = [each for each in recorded if each["record"] in rule["expr"]]
            rules.write_text(yaml.safe_dump({"groups": [{"name": name, "rules": [*needed, changed]}]}))
            file = tmp_path / f"{name}.yaml"
            file.write_text(yaml.safe_dump(run | {"rule_files": [str(rules)]}))
            files[file] = f"{rule['alert']}: {change}"
    assert len(files) > 4 * len(RULES)
    said = promtool("test", "rules", *files)
    verdicts = re.findall(r"^  (SUCCESS|FAILED)", said.stdout, re.MULTILINE)  # in the order of the files
    passed = {what for what, verdict in zip(files.values(), verdicts, strict=True) if verdict == "SUCCESS"}
    assert passed == {what for what in files.values() if what.endswith(": nothing")}


def changes(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Versions of *rule* with one mistake each, and the name of the mistake."""
    expr = rule["expr"]
    for found in _THRESHOLD.finditer(expr):
        value = float(found[0])
        for other in (value * 1.25, value * 0.75) if value else (1e12,):
            yield f"{found[0]} → {other:g}", rule | {"expr": expr[: found.start()] + f"{other:g}" + expr[found.end() :]}
    for found in _COMPARISON.finditer(expr):
        opposite = _OPPOSITE[found[0]]
        yield f"{found[0]} → {opposite}", rule | {"expr": expr[: found.start()] + opposite + expr[found.end() :]}
    for found in _MATCHER.finditer(expr):
        yield f"without {found[0]}", rule | {"expr": expr[: found.start()] + expr[found.end() :]}
    if "for" in rule:
        minutes = int(rule["for"].removesuffix("m"))
        for other_minutes in (minutes - 1, minutes + 1):
            yield f"for {minutes}m → {other_minutes}m", rule | {"for": f"{other_minutes}m"}
