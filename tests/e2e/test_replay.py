"""`warmlane replay` on what a real system served: its records, and a backup of them."""

import asyncio
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result
from msgspec import Struct

from contracts.topology import TASKS, bucket_stream
from ops.cli import cli
from ops.commands.backup.layout import MANIFEST
from tests.drills.order_real import arrivals, send_all
from tests.drills.soak import NoopSystem
from tests.kit.support import settings_file

GUIDE: Final = Path(__file__).parents[2] / "docs" / "operate" / "replay.md"
MODELS: Final = ("anisora", "phr00t")
# Three times what first in, first out can serve, but too few at once to fill the queue, so that each request has a
# record.
RATE_PER_S: Final = 3.0
SECONDS: Final = 20.0
WAIT_S: Final = 7.5
MAY_DIFFER: Final = 0.10


class Served(Struct, frozen=True):
    """What a system left behind that served in the order of the settings. That order swaps seldom, so the outcome does
    not depend on single moments."""

    up: NoopSystem
    backup: Path

    def replay(self, *options: str) -> dict[str, Any]:
        result = warmlane("replay", "--json", "--nats-url", self.up.nats_url, *options)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found


def warmlane(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("replay")
    settings = settings_file(folder, wait_limit_s=WAIT_S, degraded_margin_s=0.25)
    slowed = ("--step-seconds", "0.5", "--load-seconds", "1")
    up = NoopSystem(folder, "--lanes", "anisora=0,phr00t=0", "--settings", str(settings), *slowed)
    try:
        up.start()
        asyncio.run(send_all(up.url, arrivals(RATE_PER_S, SECONDS)))
        saved = warmlane("backup", str(folder / "backup"), "--nats-url", up.nats_url)
        assert saved.exit_code == 0, saved.output
        yield Served(up, folder / "backup")
    finally:
        up.stop()


def test_the_same_policy_gives_what_happened(served: Served) -> None:
    found = served.replay()
    happened, replayed = found["happened"]["all"], found["replayed"]["all"]
    assert happened["refused"] > 0  # else there was no overload
    assert found["orders"] == ["swap-aware"]
    assert found["notes"] == []
    for what in ("served", "refused", "swaps"):
        assert replayed[what] == pytest.approx(happened[what], rel=MAY_DIFFER, abs=2), what
    assert replayed["wait_p50_s"] == pytest.approx(happened["wait_p50_s"], rel=MAY_DIFFER, abs=1)
    for model in MODELS:
        then, now = found["happened"]["models"][model], found["replayed"]["models"][model]
        assert now["requests"] == then["requests"]
        assert now["served"] == pytest.approx(then["served"], rel=MAY_DIFFER, abs=2)


def test_the_other_order_serves_less_and_swaps_more(served: Served) -> None:
    fifo, aware = served.replay("--degraded-order", "fifo"), served.replay("--degraded-order", "swap-aware")
    assert aware["happened"] == fifo["happened"]
    assert aware["replayed"]["all"]["served"] > 1.2 * fifo["replayed"]["all"]["served"]
    assert aware["replayed"]["all"]["swaps"] < fifo["replayed"]["all"]["swaps"] / 2


def test_a_lane_for_each_model_takes_everything(served: Served) -> None:
    found = served.replay("--lanes", "anisora=2,phr00t=2")["replayed"]["all"]
    assert (found["on_lanes"], found["refused"]) == (found["requests"], 0)


def test_a_backup_gives_the_same(served: Served) -> None:
    result = warmlane("replay", "--json", "--backup", str(served.backup), "--degraded-order", "fifo")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == served.replay("--degraded-order", "fifo")


def test_a_torn_backup_is_refused(served: Served, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(served.backup, torn)
    (snapshot,) = (torn / bucket_stream(TASKS)).glob("stream.*")
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    result = warmlane("replay", "--backup", str(torn))
    assert result.exit_code == 1
    assert f"{snapshot} is not what was saved (its SHA-256 differs)" in result.stderr


def test_what_is_no_backup_of_warmlane_is_refused(served: Served, tmp_path: Path) -> None:
    result = warmlane("replay", "--backup", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path} is no whole backup: it has no {MANIFEST}" in result.stderr
    manifest = json.loads((served.backup / MANIFEST).read_text())
    manifest["streams"] = [each for each in manifest["streams"] if each["name"] != bucket_stream(TASKS)]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    result = warmlane("replay", "--backup", str(tmp_path))
    assert result.exit_code == 1
    assert "holds no records of tasks; name a folder that `warmlane backup` has written" in result.stderr
    (tmp_path / MANIFEST).write_text("[]")
    assert "cannot be read" in warmlane("replay", "--backup", str(tmp_path)).stderr


def test_a_span_without_a_task_is_an_error(served: Served) -> None:
    result = warmlane("replay", "--backup", str(served.backup), "--until", "2020-01-01")
    assert result.exit_code == 1
    assert "no task in these records has ended" in result.stderr


def test_the_commands_of_the_guide_run(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run on the folder of the system, with its backup in the place that the guide names."""
    monkeypatch.chdir(served.up.data_dir.parent)
    monkeypatch.setenv("WARMLANE_DATA_DIR", str(served.up.data_dir))
    (served.up.data_dir.parent / "backups").mkdir()
    shutil.copytree(served.backup, served.up.data_dir.parent / "backups" / "monday")
    commands = re.findall(r"^(warmlane replay [^\n|]*)", GUIDE.read_text(), re.MULTILINE)
    assert len(commands) > 3
    for command in commands:
        result = warmlane(*shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"
        assert "replayed" in result.stdout
