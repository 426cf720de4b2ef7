"""`make containers`: what it reads out of logs, and its report."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.drills.containers import main, noisy, of_memory, page
from tests.drills.containers_engine import Finding, tagged
from tests.kit.compose import FILE, builders


def test_without_an_engine_it_is_skipped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER", "no-such-engine")
    done = CliRunner().invoke(main)
    assert (done.exit_code, done.output) == (
        0,
        "skipped: there is no no-such-engine here; DOCKER names another command\n",
    )


def test_only_images_of_ours_get_the_tag_of_the_drill() -> None:
    before, after = FILE.read_text().split("\n"), tagged(FILE.read_text()).split("\n")
    changed = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert {*changed} == {f"image: {image.rpartition(':')[0]}:drill" for image in builders()}


def test_what_a_lane_says_of_its_memory_is_found_in_its_log() -> None:
    said = "the pipeline host was killed by the kernel (signal 9, SIGKILL): the memory limit of 0.6 GiB was reached"
    assert of_memory(f'{{"event": "host_lost", "error": "{said}"}}\n{{"event": "ready"}}') == said
    assert of_memory('{"event": "ready"}') == ""


def test_a_log_that_complains_of_the_collector_is_noisy() -> None:
    assert noisy('{"event": "ready"}\n{"event": "OTLP refused"}') == ['{"event": "OTLP refused"}']


def test_the_report_says_what_was_not_as_it_should_be() -> None:
    found = [Finding("a", "1 s"), Finding("b", "2 | 3", is_good=False)]
    lines = page(found, engine="engine 1", machine="a machine").splitlines()
    assert lines[-2:] == ["| a | 1 s | yes |", "| b | 2 / 3 | **no** |"]


def test_a_step_that_cannot_be_done_ends_the_drill_and_stands_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    engine.write_text(
        '#!/bin/sh\ncase $* in version*) echo \'{"Server": {"Version": "1"}}\';; \'compose version\'*) echo 2;; '
        "*) echo one >&2; echo 'no room' >&2; exit 1;; esac\n"
    )
    engine.chmod(0o755)
    monkeypatch.setenv("DOCKER", str(engine))
    done = CliRunner().invoke(main, ["--out", str(tmp_path / "report.md")])
    assert done.exit_code == 1
    row = (tmp_path / "report.md").read_text().splitlines()[-1]
    assert row.startswith("| the next step, after which nothing was tried | docker compose")
    assert row.endswith("build ended with 1: … no room | **no** |")
