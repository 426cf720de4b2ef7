"""`warmlane tasks` against a gateway that answers as scripted; `tests/e2e/test_docs.py` uses a real one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from ops.cli import cli
from tests.kit.scripted_gateway import DONE, ID, PENDING, VIDEO, Answer, ScriptedGateway, problem

OTHER: Final = "019c9a4e-0000-7000-8000-00000000000f"
FAILED: Final[dict[str, Any]] = {
    **PENDING,
    "status": "failed",
    "error": {"code": "worker_lost", "message": "2 workers were lost"},
    "timeline": [{"at": "2026-02-26T12:00:00Z", "event": "accepted"}],
}
CANCELLED: Final = {**PENDING, "status": "failed", "error": {"code": "cancelled", "message": "cancelled on request"}}


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    yield gateway
    gateway.close()


def tasks(gateway: ScriptedGateway, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["tasks", *arguments, "--url", gateway.url])
    assert gateway.script == [], "an answer was not asked for"
    return result


def asked(gateway: ScriptedGateway) -> list[dict[str, list[str]]]:
    return [parse_qs(urlsplit(path).query) for _, path, _, _ in gateway.asked]


def page(*found: dict[str, Any], following: str | None = None) -> Answer:
    return Answer(200, {"tasks": found, "next_cursor": following})


def test_a_list_has_a_line_a_task(gateway: ScriptedGateway) -> None:
    rude = {**PENDING, "parameters": {**PENDING["parameters"], "prompt": "a fox\n\x1b[2Jand a hen"}}
    gateway.script = [page(rude, FAILED)]
    result = tasks(gateway, "list", "--status", "failed", "--model", "aniSora")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{ID}  pending     anisora   2026-02-26 12:00:00  a fox  [2Jand a hen",
        f"{ID}  failed      anisora   2026-02-26 12:00:00  worker_lost: 2 workers were lost",
    ]
    assert result.stderr == ""
    assert asked(gateway) == [{"status": ["failed"], "model": ["aniSora"], "limit": ["20"]}]


@pytest.mark.parametrize(
    ("arguments", "pages", "queries"),
    [
        (["--limit", "2"], [page(PENDING, DONE, following="c1")], [("2", None)]),
        (
            ["--limit", "103", "--cursor", "c0"],
            [page(*[PENDING] * 100, following="c1"), page(*[PENDING] * 3, following="c2")],
            [("100", "c0"), ("3", "c1")],
        ),
        (["--all"], [page(PENDING, following="c1"), page(DONE)], [("100", None), ("100", "c1")]),
    ],
    ids=["one", "more than one", "all"],
)
def test_a_list_goes_on_page_after_page(
    gateway: ScriptedGateway, arguments: list[str], pages: list[Answer], queries: list[tuple[str, str | None]]
) -> None:
    gateway.script = list(pages)
    following = json.loads(pages[-1].content)["next_cursor"]
    result = tasks(gateway, "list", *arguments)
    assert result.exit_code == 0, result.output
    advice = f"there are more: --all, a larger --limit, or --cursor {following}\n" if following else ""
    assert result.stderr == advice
    assert asked(gateway) == [
        {"limit": [limit]} | ({} if cursor is None else {"cursor": [cursor]}) for limit, cursor in queries
    ]


def test_json_is_what_the_gateway_answered(gateway: ScriptedGateway) -> None:
    gateway.script = [page(PENDING, following="c1")]
    listed = tasks(gateway, "list", "--limit", "1", "--json")
    assert json.loads(listed.stdout) == {"tasks": [PENDING], "next_cursor": "c1"}
    gateway.script = [Answer(200, FAILED)]
    assert json.loads(tasks(gateway, "show", ID, "--json").stdout) == FAILED


def test_a_list_is_asked_for_by_labels_statuses_and_time(gateway: ScriptedGateway) -> None:
    gateway.script = [page()]
    wanted = ["--label", "project:spring", "--label", "shot:7", "--status", "done", "--status", "failed"]
    result = tasks(gateway, "list", *wanted, "--created-after", "2026-05-01T12:00:00+02:00", "--limit", "1")
    assert (result.exit_code, result.stderr) == (0, "no task matches\n")
    assert asked(gateway) == [
        {
            "label": ["project:spring", "shot:7"],
            "status": ["done", "failed"],
            "created_after": ["2026-05-01T12:00:00+02:00"],
            "limit": ["1"],
        }
    ]


@pytest.mark.parametrize(
    ("labels", "said"), [(["spring"], "expected KEY:VALUE"), (["a:1", "a:2"], "a has one value, and not 1 and 2")]
)
def test_what_is_no_label_is_said_before_anything_is_asked(
    gateway: ScriptedGateway, labels: list[str], said: str
) -> None:
    result = tasks(gateway, "list", *(each for label in labels for each in ("--label", label)))
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert asked(gateway) == []


def test_a_task_that_runs_is_shown_with_the_time_left(gateway: ScriptedGateway) -> None:
    running = {**PENDING, "status": "processing", "progress": {"step": 3, "steps": 8, "eta_s": 12.4}}
    gateway.script = [Answer(200, running)]
    assert "  progress  step 3 of 8, about 12 s left\n" in tasks(gateway, "show", ID).stdout
    gateway.script = [Answer(200, {**running, "progress": {"step": 3, "steps": 8}})]
    assert "  progress  step 3 of 8\n" in tasks(gateway, "show", ID).stdout  # from a gateway of an earlier version


def test_tasks_are_forgotten_and_what_was_gone_before_is_fine(gateway: ScriptedGateway) -> None:
    gateway.script = [
        Answer(204),
        problem(404, "task_not_found", detail="no task has this id"),
        problem(409, "task_not_ended", detail="the task is processing; wait for it, or cancel it first"),
    ]
    result = tasks(gateway, "forget", ID, OTHER, ID)
    assert (result.exit_code, result.stdout) == (1, f"forgotten {ID}\nforgotten {OTHER}\n")
    assert "the task is processing; wait for it, or cancel it first" in result.stderr


def test_an_empty_list_is_no_failure(gateway: ScriptedGateway) -> None:
    gateway.script = [page()]
    result = tasks(gateway, "list", "--status", "done")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no task matches\n")


def test_a_task_is_shown_with_why_it_failed_and_where_it_is(gateway: ScriptedGateway) -> None:
    gateway.script = [Answer(200, FAILED)]
    result = tasks(gateway, "show", ID.upper())
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{ID} is failed"
    assert "  why       worker_lost: 2 workers were lost" in lines
    assert "  2026-02-26 12:00:00  accepted" in lines
    assert f"  address   {gateway.url}/tasks/{ID}" in lines


def test_what_can_be_cancelled_is_and_the_rest_is_reported(gateway: ScriptedGateway) -> None:
    gateway.script = [
        Answer(200, DONE),
        problem(404, "task_not_found", detail="no task has this id"),
        Answer(200, PENDING),
        Answer(200, CANCELLED),
    ]
    result = tasks(gateway, "cancel", ID, OTHER, ID)
    assert result.exit_code == 1
    assert result.stdout == f"cancelled {ID}\n"
    assert f"{ID}: it had ended already: done\n" in result.stderr
    assert f"{OTHER}: title of task_not_found (404 task_not_found)\n  no task has this id\n" in result.stderr
    assert [method for method, *_ in gateway.asked] == ["GET", "GET", "GET", "DELETE"]
    gateway.script = [Answer(200, PENDING), Answer(200, CANCELLED)]
    assert tasks(gateway, "cancel", ID).exit_code == 0


def test_a_video_is_downloaded(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [Answer(200, DONE), Answer(200, VIDEO)]
    result = tasks(gateway, "download", ID, "--out", str(tmp_path / "fox.mp4"))
    assert (result.exit_code, (tmp_path / "fox.mp4").read_bytes()) == (0, VIDEO), result.output
    gateway.script = [Answer(200, PENDING), Answer(200, DONE, etag='"3"'), Answer(200, VIDEO)]
    result = tasks(gateway, "download", ID, "--wait", "--out", str(tmp_path))
    assert (result.exit_code, result.stdout.split()[0]) == (0, str(tmp_path / f"anisora-{ID[-12:]}.mp4"))


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (PENDING, f"task {ID} is pending; --wait waits for its video\n"),
        (FAILED, f"task {ID} failed: worker_lost: 2 workers were lost\n"),
    ],
)
def test_a_task_without_a_video_is_reported(
    gateway: ScriptedGateway, tmp_path: Path, task: dict[str, Any], text: str
) -> None:
    gateway.script = [Answer(200, task)]
    result = tasks(gateway, "download", ID, "--out", str(tmp_path))
    assert (result.exit_code, result.stderr) == (1, text)


@pytest.mark.parametrize("wrong", ["", "..", "fox", f"{ID}0", f"/{ID}", f"{ID}?wait=5", "\u0664" * 36])
@pytest.mark.parametrize("command", ["show", "cancel", "download"])
def test_an_invalid_id_is_not_sent(gateway: ScriptedGateway, command: str, wrong: str) -> None:
    result = tasks(gateway, command, wrong)
    assert (result.exit_code, gateway.asked) == (2, [])
    assert "is no id of a task; `warmlane tasks list` shows them" in result.stderr
