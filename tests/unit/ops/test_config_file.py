"""One file for all parts: which source takes precedence, what is refused and how, and which source is named."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ops.cli import cli
from ops.commands.config_file import CONFIG_VARIABLE, DECIDED_VARIABLE, PARTS, configurable, keys_of

COMMON = """\
# all parts
data-dir = "common"
keep = "2d"

[gateway]
port = 9000
cors-origin = [
  "https://a.example",
  "https://b.example",
]
trace-reads = true

[lane]
step-seconds = 1

[lane.red]
model = "anisora"

[lane.blue]
model = "phr00t"
step-seconds = 2.5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "warmlane.toml"
    path.write_text(COMMON)
    return path


def warmlane(*arguments: str, **variables: str) -> Result:
    clean = {CONFIG_VARIABLE: None, DECIDED_VARIABLE: None} | variables
    return CliRunner().invoke(cli, [*arguments], env=clean)


def shown(file: Path, part: str, *options: str, **variables: str) -> dict[str, dict[str, Any]]:
    result = warmlane("config", "show", part, "--json", "--config", str(file), "--", *options, **variables)
    assert result.exit_code == 0, result.output
    parts = json.loads(result.stdout)["parts"]
    assert isinstance(parts, dict)
    return parts


def test_an_option_counts_before_its_variable_the_variable_before_the_file(file: Path) -> None:
    def port(*options: str, **variables: str) -> tuple[str, str, str | None]:
        found = shown(file, "gateway", *options, **variables)["gateway"]["port"]
        return found["value"], found["source"], found["where"]

    assert port("--port", "1", WARMLANE_PORT="2") == ("1", "option", "--port")
    assert port(WARMLANE_PORT="2") == ("2", "variable", "WARMLANE_PORT")
    assert port() == ("9000", "file", f"{file}:6")
    file.write_text("")
    assert port() == ("8000", "default", None)


def test_the_table_of_a_part_counts_before_the_top_and_the_one_of_a_lane_before_that(file: Path) -> None:
    lanes = shown(file, "lane")
    assert {name: lane["step-seconds"]["value"] for name, lane in lanes.items()} == {
        "lane.red": "1",
        "lane.blue": "2.5",
    }
    assert {lane["data-dir"]["where"] for lane in lanes.values()} == {f"{file}:2"}
    assert lanes["lane.blue"]["model"] == {"value": "phr00t", "source": "file", "where": f"{file}:20"}
    assert shown(file, "gateway")["gateway"]["cors-origin"]["value"] == ["https://a.example", "https://b.example"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_reads_what_is_shown(part: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CONFIG_VARIABLE, DECIDED_VARIABLE):
        monkeypatch.setenv(name, "")  # what the part sets for its children is taken back after the test
    root = click.Context(cli)
    assert isinstance(cli, click.Group)
    command = cli.get_command(root, part)
    assert command is not None
    arguments = ["--config", str(file), *(["--name", "blue"] if part == "lane" else [])]
    ctx = command.make_context(part, arguments)
    folder = ctx.params.get("data_dir") or ctx.params.get("auth_dir")
    assert folder == Path("common")
    assert (part != "lane") or (ctx.params["model"], ctx.params["step_seconds"]) == ("phr00t", 2.5)
    assert (part != "gateway") or (ctx.params["port"], ctx.params["trace_reads"]) == (9000, True)


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        pytest.param("prot = 1", ":1: prot", "do you mean port?", id="unknown-at-the-top"),
        pytest.param("[gateway]\n\nprot = 1", ":3: gateway.prot", "do you mean port?", id="unknown-in-a-table"),
        pytest.param("[gatewya]\nport = 1", ":1: gatewya", "do you mean gateway?", id="unknown-part"),
        pytest.param("[gateway]\nmodel = 'x'", ":2: gateway.model", "has no such option", id="of-another-part"),
        pytest.param("[gateway.east]\nport = 1", ":1: gateway.east", "has no such option", id="gateways-have-no-names"),
        pytest.param("gateway = 1", ":1: gateway", "in a table: [gateway]", id="a-part-is-a-table"),
        pytest.param("port = '1'", ":1: port", "a whole number is expected, and not '1'", id="text-for-a-number"),
        pytest.param("port = true", ":1: port", "a whole number is expected", id="switch-for-a-number"),
        pytest.param("trace-reads = 1", ":1: trace-reads", "true or false is expected", id="number-for-a-switch"),
        pytest.param("cors-origin = 'https://a'", ":1: cors-origin", "a list of texts", id="text-for-a-list"),
        pytest.param("keep = 7", ":1: keep", "a text in quotes (duration) is expected", id="number-for-a-time"),
        pytest.param("keep = '7 days'", ":1: keep", "is not a time such as 30s", id="no-time"),
        pytest.param("\nport = 70000", ":2: port", "not in the range", id="out-of-range"),
        pytest.param("port = ", "", "not TOML", id="no-toml"),
        pytest.param("port = 1\nport = 2", "", "not TOML", id="twice"),
    ],
)
def test_what_cannot_be_used_ends_with_file_line_and_what_is_expected(
    content: str, where: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.toml"
    path.write_text(content)
    for arguments in (["gateway"], ["config", "check"]):
        result = warmlane(*arguments, "--config", str(path))
        assert result.exit_code in {1, 2}
        assert f"{path}{where}: " in result.output
        assert expected in result.output


def test_a_password_is_never_shown_and_no_file_that_all_may_read_holds_one(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text('nats-url = "nats://lane:tulip@a:1,nats://lane:tulip@b:1"')
    path.chmod(0o644)
    refused = warmlane("config", "show", "--config", str(path))
    assert (refused.exit_code, "chmod o=" in refused.output, "tulip" in refused.output) == (2, True, False)
    path.chmod(0o640)
    result = warmlane("config", "show", "lane", "--config", str(path))
    assert "nats://lane:***@a:1,nats://lane:***@b:1" in result.output
    assert "tulip" not in result.output
    path.write_text('nats-url = "http://lane:tulip@a:1"')
    assert "tulip" not in warmlane("config", "check", "--config", str(path)).output


def test_check_judges_values_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text('keep = "1s"\ndownload-links = "1m"\n[lane.a]\nmodel = "other"\n[lane.b]\n')
    result = warmlane("config", "check", "--config", str(path))
    assert result.exit_code == 1
    for expected in (
        "gateway: Invalid value for --keep: 1s is less than",
        "gateway: Invalid value for --download-links: a folder has no links",
        "lane.a: no model is called other",
        "lane.b: model is missing",
    ):
        assert expected in result.output
    path.write_text("")
    assert (
        "usable by up, nats-server, provision, supervisor, lane, degraded, gateway"
        in warmlane("config", "check").output
    )


def test_those_that_up_starts_read_the_same_file_but_for_what_up_decides(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    monkeypatch.setenv(DECIDED_VARIABLE, "")
    root = click.Context(cli)
    assert isinstance(cli, click.Group)
    up, lane, gateway = (cli.get_command(root, name) for name in ("up", "lane", "gateway"))
    assert up is not None
    assert lane is not None
    assert gateway is not None
    up.make_context("up", [])
    of_lane = lane.make_context("lane", ["--name", "blue"]).params
    assert (of_lane["model"], of_lane["step_seconds"]) == ("phr00t", 0.0)
    of_gateway = gateway.make_context("gateway", []).params
    assert (of_gateway["port"], of_gateway["trace_reads"]) == (8000, True)
    file.write_text("[lane]\nmetrics-port = 9101\nmodel = 'anisora'\n")
    assert lane.make_context("lane", []).params["metrics_port"] is None


def test_a_key_means_the_same_variable_in_every_part() -> None:
    root = click.Context(cli)
    assert isinstance(cli, click.Group)
    found: dict[str, set[str]] = {}
    for part in PARTS:
        command = cli.get_command(root, part)
        assert command is not None
        for key, option in keys_of(command).items():
            found.setdefault(key, set()).add(str(option.envvar))
    assert {key: variables for key, variables in found.items() if len(variables) != 1} == {}
    assert not found.keys() & set(PARTS)  # a key at the top could not be told from a table


def test_other_commands_take_what_they_have_an_option_for(file: Path) -> None:
    keys = click.Group("keys")
    keys.add_command(click.Command("add", params=[click.Option(["--data-dir"], envvar="WARMLANE_DATA_DIR")]))
    configurable("", keys, lambda _: None)
    assert keys.commands["add"].make_context("add", ["--config", str(file)]).params == {"data_dir": "common"}
