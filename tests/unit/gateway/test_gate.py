"""What a gateway answers before it can serve."""

import json

import pytest

from gateway.server.gate import answer_before

WHY = "the server lacks DEGRADED; run `warmlane provision`"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/livez", 200, None),
        ("/livez/", 200, None),
        ("/readyz", 503, None),
        ("/readyz/", 503, None),
        ("/healthz", 503, "starting"),
        ("/generate", 503, "starting"),
        ("/", 503, "starting"),
    ],
)
def test_it_lives_and_is_not_ready(path: str, status: int, code: str | None) -> None:
    answer = answer_before(path, models=("anisora",), waits_for=WHY)
    assert (answer.status, json.loads(answer.body).get("code")) == (status, code)
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers.get("retry-after") == (None if code is None else "1")


def test_readiness_says_why_in_its_own_form() -> None:
    readiness = json.loads(answer_before("/readyz", models=("anisora",), waits_for=WHY).body)
    assert readiness == {
        "ready": False,
        "nats": False,
        "degraded_worker": False,
        "models": {"anisora": {"ready": False, "warm": False, "lanes": []}},
        "troubles": [WHY],
    }
