import re
from typing import Annotated, Any

import pytest
from litestar import Litestar, Request, get, post
from litestar.params import FromPath, QueryParameter
from litestar.testing import TestClient
from structlog.testing import capture_logs

from contracts.generation.errors import FieldError
from gateway.http.problem_kinds import PROBLEMS
from gateway.http.problems import ProblemError, problem_handlers

SECRET = "zebra7319"


@get("/tasks/{task_id:str}")
async def look(
    task_id: FromPath[str], wait: Annotated[float | None, QueryParameter(ge=0, le=60)] = None
) -> dict[str, Any]:
    if task_id == "broken":
        prompt = SECRET
        raise RuntimeError(f"the cause, with {len(prompt)} characters")
    raise ProblemError("task_not_found", "no such task")


@post("/generate")
async def submit(request: Request[Any, Any, Any]) -> None:
    await request.body()
    raise ProblemError(
        "queue_overloaded", "25 are waiting", limit="depth", retry_after_s=2.1, headers={"X-Extra": "yes"}
    )


@pytest.fixture(scope="module")
def client() -> TestClient[Litestar]:
    app = Litestar(
        [look, submit],
        exception_handlers=problem_handlers(),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=100,
    )
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        pytest.param("GET", "/nothing", "not_found", id="unknown-path"),
        pytest.param("GET", "/tasks/a/b", "not_found", id="below-a-path"),
        pytest.param("PUT", "/generate", "method_not_allowed", id="wrong-method"),
        pytest.param("GET", "/tasks/a?wait=61", "invalid_query", id="wait-too-long"),
        pytest.param("GET", "/tasks/a?wait=-1", "invalid_query", id="wait-negative"),
        pytest.param("GET", "/tasks/a?wait=nan", "invalid_query", id="wait-nan"),
        pytest.param("GET", "/tasks/a?wait=soon", "invalid_query", id="wait-in-words"),
        pytest.param("GET", "/tasks/a?wait=5", "task_not_found", id="raised-by-a-handler"),
        pytest.param("GET", "/tasks/broken", "internal_error", id="unexpected"),
        pytest.param("POST", "/generate", "queue_overloaded", id="overloaded"),
    ],
)
def test_every_error_is_a_problem_document(client: TestClient[Litestar], method: str, path: str, code: str) -> None:
    answer = client.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["code"] == code
    assert document["type"] == f"urn:warmlane:problem:{code}"
    assert answer.status_code == document["status"] == PROBLEMS[code].status
    assert document["title"] == PROBLEMS[code].title
    assert document["detail"]


def test_a_wrong_parameter_is_named(client: TestClient[Litestar]) -> None:
    assert client.get("/tasks/a?wait=61").json()["detail"].startswith("wait: ")


def test_a_wrong_method_comes_with_the_right_ones(client: TestClient[Litestar]) -> None:
    assert "POST" in client.put("/generate").headers["allow"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(client: TestClient[Litestar], chunked: bool) -> None:
    body = iter([b"x" * 60, b"x" * 60]) if chunked else b"x" * 101
    answer = client.post("/generate", content=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_headers_and_the_time_to_come_back(client: TestClient[Litestar]) -> None:
    answer = client.post("/generate", content=b"x" * 100)
    assert (answer.headers["retry-after"], answer.headers["x-extra"]) == ("3", "yes")
    assert (answer.json()["retry_after_s"], answer.json()["limit"]) == (2.1, "depth")
    assert "errors" not in answer.json()


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (29.01, "30")])
def test_retry_after_is_whole_seconds_and_never_now(retry_after_s: float, header: str) -> None:
    assert ProblemError("queue_overloaded", "", retry_after_s=retry_after_s).headers == {"Retry-After": header}


def test_wrong_fields_are_listed() -> None:
    wrong = [FieldError(pointer="/steps", code="wrong_type", message="steps: no", expected=8, got=None)]
    problem = ProblemError("validation_failed", "1 field is wrong", errors=wrong).problem
    assert problem.errors == wrong


def test_the_cause_of_an_unexpected_error_is_logged_and_not_sent(client: TestClient[Litestar]) -> None:
    with capture_logs() as logged:
        answer = client.get(f"/tasks/broken?note={SECRET}")
    assert "cause" not in answer.json()["detail"].replace(PROBLEMS["internal_error"].detail, "")
    assert "RuntimeError" not in answer.text
    [line] = logged
    assert (line["log_level"], line["path"]) == ("error", "/tasks/broken")
    assert "RuntimeError: the cause" in line["exception"]
    # neither the query nor a local variable: a renderer gets text, not an exception that it could take apart
    assert SECRET not in str(line)
    assert "exc_info" not in line


def test_an_unknown_code_is_a_mistake_of_the_gateway() -> None:
    with pytest.raises(KeyError):
        ProblemError("no_such_code", "…")


@pytest.mark.parametrize("code", PROBLEMS)
def test_the_table(code: str) -> None:
    kind = PROBLEMS[code]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert 400 <= kind.status < 600
    assert kind.detail.endswith(".")
    assert not kind.title.endswith(".")
