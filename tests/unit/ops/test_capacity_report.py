"""`warmlane capacity`: what it takes, what it prints, and that ops/capacity.md shows just that."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from contracts.settings import load_settings
from contracts.topology import DEGRADED_MAX_MSGS
from ops.cli import cli
from ops.commands.capacity import model
from ops.commands.capacity.case import case_of, compare
from ops.commands.capacity.report import plot
from tests.kit.support import reporting_file

OPS = Path(__file__).parents[3] / "ops"
GUIDE = (OPS / "capacity.md").read_text()
_NUMBER = re.compile(r"-?\d+\.\d+")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["capacity", *arguments])


def found(*arguments: str) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for the arrivals at which both cost the same. That takes some 60 simulations, the rest takes 2, and
    a test of other numbers need not wait for it."""
    monkeypatch.setattr(model, "BREAK_EVEN_FACTORS", ())


def test_the_commands_of_the_guide_print_what_it_shows() -> None:
    blocks = re.findall(r"^```console\n\$ ([^\n]+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert blocks
    for typed, shown in blocks:
        result = CliRunner().invoke(cli, shlex.split(typed)[1:])
        assert result.exit_code == 0, result.output
        printed = [line.rstrip() for line in result.stdout.splitlines()]
        assert printed == shown.splitlines(), typed


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("arguments", "way", "name", "places"),
    [
        ((), "lanes", "overloaded", "2.2 %"),
        ((), "alone", "overloaded", "46.2 %"),
        (("--lanes", "anisora=2,phr00t=1"), "lanes", "overloaded", "0.3 %"),
        (("--lanes", "phr00t=1"), "lanes", "overloaded", "13 %"),
        (("--arrivals", "anisora=1,phr00t=2"), "lanes", "cost_per_video", "2.50"),
        (("--arrivals", "anisora=1,phr00t=2"), "alone", "cost_per_video", "0.95"),
    ],
)
def test_the_numbers_in_the_guides_sentences(arguments: tuple[str, ...], way: str, name: str, places: str) -> None:
    of = found(*arguments)[way]
    value = 100 * of["total"][name] if places.endswith("%") else of[name]
    digits = len(places.removesuffix(" %").partition(".")[2])
    assert f"{value:.{digits}f}" == places.removesuffix(" %")
    assert places in GUIDE


@pytest.mark.usefixtures("no_search")
def test_limits_and_lanes_come_from_the_settings(tmp_path: Path) -> None:
    path = reporting_file(tmp_path)
    settings = json.loads(path.read_text())
    settings["models"]["phr00t"]["lanes"] = 3
    settings["windows"] |= {"wait_limit_s": 20, "degraded_margin_s": 1}
    path.write_text(json.dumps(settings))
    document = found("--settings", str(path))
    assert [each["lanes"] for each in document["demands"]] == [1, 3]
    assert document["lanes"]["gpus"] == 5
    terms = document["terms"]
    assert (terms["lane_wait_s"], terms["degraded_wait_s"], terms["degraded_depth"]) == (20, 19, DEGRADED_MAX_MSGS)


@pytest.mark.usefixtures("no_search")
def test_the_order_is_that_of_the_settings_unless_one_is_asked_for() -> None:
    assert "its order is swap-aware" in run().stdout
    quick = ["--service", "anisora=8s,phr00t=8s", "--load", "anisora=15s,phr00t=15s", "--release", "1s"]
    quick += ["--arrivals", "anisora=300,phr00t=300", "--lanes", "anisora=0,phr00t=0"]
    fifo, aware = (found(*quick, "--degraded-order", order) for order in ("fifo", "swap-aware"))
    assert [document["terms"]["policy"]["order"] for document in (fifo, aware)] == ["fifo", "swap-aware"]
    assert aware["alone"]["total"]["videos_per_h"] > 1.1 * fifo["alone"]["total"]["videos_per_h"]


@pytest.mark.usefixtures("no_search")
def test_what_is_given_counts_and_what_is_not_is_marked_as_assumed() -> None:
    given = ["--arrivals", "phr00t=30", "--service", "phr00t=1.5m", "--gpu-price", "1.8", "--release", "9s"]
    document = found(*given, "--lanes", "phr00t=2")
    anisora, phr00t = document["demands"]
    assert (phr00t["arrivals_per_h"], phr00t["service_s"], phr00t["lanes"], anisora["lanes"]) == (30, 90, 2, 0)
    assert document["assumed"] == ["anisora.arrivals", "anisora.load", "anisora.service", "phr00t.load"]
    assert (document["terms"]["gpu_price_per_h"], document["terms"]["release_s"]) == (1.8, 9)
    text = run(*given).stdout
    assert re.search(r"phr00t +│ +30 │ +90 s │ +120 s\* │", text)
    assert "* assumed, not measured" in text
    everything = [
        "--arrivals",
        "anisora=1,phr00t=1",
        "--service",
        "anisora=9s,phr00t=9s",
        "--load",
        "anisora=9s,phr00t=9s",
    ]
    assert "assumed" not in run(*everything).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arrivals", "sora=6"], "no model 'sora'; there are anisora, phr00t"),
        (["--lanes", "sora=1"], "no model 'sora'"),
        (["--arrivals", "anisora"], "'anisora' is not as in anisora=6"),
        (["--arrivals", "anisora=-1"], "is not as in"),
        (["--arrivals", "anisora=nan"], "is not as in"),
        (["--arrivals", "anisora=1001"], "at most 1000"),
        (["--arrivals", "anisora=1,anisora=2"], "every model once"),
        (["--arrivals", "anisora=0,phr00t=0"], "nothing arrives"),
        (["--service", "anisora=240"], "'anisora=240' is not as in anisora=240s"),
        (["--load", "anisora=0s"], "is not as in"),
        (["--gpu-price", "0"], "gpu-price"),
        (["--plot", "capacity.pdf"], "neither in .png nor in .svg"),
    ],
)
def test_unusable_input_is_reported(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.usefixtures("no_search")
def test_of_another_model_nothing_is_assumed(tmp_path: Path) -> None:
    path = reporting_file(tmp_path)
    settings = json.loads(path.read_text())
    settings["models"]["third"] = settings["models"]["phr00t"] | {"aliases": []}
    path.write_text(json.dumps(settings))
    result = run("--settings", str(path))
    assert result.exit_code == 2
    assert "nothing is known of third; give third=…" in result.stderr
    given = ["--arrivals=third=1", "--service=third=9s", "--load=third=9s"]
    assert set(found("--settings", str(path), *given)["lanes"]["models"]) == {"anisora", "phr00t", "third"}


def test_without_lanes_both_are_the_same() -> None:
    document = found("--lanes", "anisora=0,phr00t=0")
    assert document["lanes"] == document["alone"]
    assert document["break_even_per_h"] is None
    assert document["verdict"] == "No lanes are asked for: both columns are the degraded worker alone."


def test_a_break_even_of_never_is_printed() -> None:
    assert found("--arrivals", "anisora=0,phr00t=6", "--lanes", "phr00t=1")["verdict"].endswith(
        "lanes never cost less per video."
    )


@pytest.mark.usefixtures("no_search")
def test_a_model_that_nobody_asks_for_is_shown_without_a_mistake() -> None:
    assert run("--arrivals", "anisora=0,phr00t=6").exit_code == 0


def numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]


@pytest.mark.usefixtures("no_search")
def test_the_plot_of_the_guide_is_that_of_its_example(tmp_path: Path) -> None:
    """The same drawing; its last digits depend on the machine."""
    assert run("--plot", str(tmp_path / "capacity.svg")).exit_code == 0
    drawn, kept = (tmp_path / "capacity.svg").read_text(), (OPS / "capacity.svg").read_text()
    assert _NUMBER.sub("0", drawn) == _NUMBER.sub("0", kept)
    assert numbers(drawn) == pytest.approx(numbers(kept), abs=0.01)
    assert ">overloaded, % of requests<" in kept  # text, and not outlines


def test_the_plot_is_the_same_bytes_again_and_may_be_a_png(tmp_path: Path) -> None:
    case = case_of(load_settings(), arrivals={}, service={}, load={}, lanes=None, release_s=15, gpu_price_per_h=2.5)
    for name in ("1.svg", "2.svg", "1.png"):
        plot(case, tmp_path / name)
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()
    assert (tmp_path / "1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_search")
def test_matplotlib_is_needed_for_the_plot_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run().exit_code == 0
    result = run("--plot", str(tmp_path / "x.svg"))
    assert result.exit_code == 1
    assert "pip install -c constraints.txt -e '.[plot]'" in " ".join(result.stderr.split())


@pytest.mark.usefixtures("no_search")
def test_a_plot_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    result = run("--plot", str(tmp_path / "no" / "x.svg"))
    assert result.exit_code == 1
    assert "the plot cannot be written" in result.stderr


def test_the_json_has_what_the_tables_show() -> None:
    document = found()
    case = case_of(load_settings(), arrivals={}, service={}, load={}, lanes=None, release_s=15, gpu_price_per_h=2.5)
    comparison = compare(case)
    assert document["lanes"]["cost_per_video"] == comparison.lanes.cost_per_video
    assert document["break_even_per_h"] == comparison.break_even_per_h
    for way in ("lanes", "alone"):
        assert document[way]["total"]["videos_per_h"] == pytest.approx(
            sum(flow["videos_per_h"] for flow in document[way]["models"].values())
        )
