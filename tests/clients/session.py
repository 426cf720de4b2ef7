"""A whole job with the client that openapi-python-client generates: submit, wait, download, and errors.

Run it as `python session.py URL KEY`, where `warmlane_generated` can be imported. It prints a JSON line for each step.
"""

import hashlib
import json
import sys

from warmlane_generated import AuthenticatedClient
from warmlane_generated.api.generation import generate
from warmlane_generated.api.tasks import cancel_task, get_task, get_video, list_tasks
from warmlane_generated.models import (
    GenerateJsonAnisoraRequest,
    GenerateJsonAnisoraRequestModel,
    Problem,
    TaskStatus,
    TaskView,
)
from warmlane_generated.types import File


def say(step: str, **seen: object) -> None:
    print(json.dumps({"step": step, **seen}), flush=True)


def main(url: str, key: str) -> None:
    client = AuthenticatedClient(base_url=url, token=key, timeout=90)
    body = GenerateJsonAnisoraRequest(model=GenerateJsonAnisoraRequestModel.ANISORA, prompt="a fox in the snow")

    answer = generate.sync_detailed(client=client, body=body, prefer="respond-async", idempotency_key="python-session")
    task = answer.parsed
    assert isinstance(task, TaskView), task
    say("submitted", status=answer.status_code, id=task.id, location=answer.headers["location"])

    ended = get_task.sync(task.id, client=client, wait=60)
    assert isinstance(ended, TaskView), ended
    assert ended.status is TaskStatus.DONE, ended
    say("ended", status=ended.status.value, frames=ended.video.frames)

    video = get_video.sync(task.id, client=client)
    assert isinstance(video, File), video
    say("downloaded", sha256=hashlib.sha256(video.payload.read()).hexdigest())

    listed = list_tasks.sync(client=client, limit=10)
    say("listed", ids=[each.id for each in listed.tasks])

    wrong = generate.sync(client=client, body=GenerateJsonAnisoraRequest(model=body.model, prompt=" ", width=7))
    assert isinstance(wrong, Problem), wrong
    say("refused", code=wrong.code, pointers=[each.pointer for each in wrong.errors])
    unknown = get_task.sync("00000000-0000-0000-0000-000000000000", client=client)
    assert isinstance(unknown, Problem), unknown
    say("unknown", code=unknown.code)
    stranger = cancel_task.sync(task.id, client=AuthenticatedClient(base_url=url, token="wl_no_key"))
    assert isinstance(stranger, Problem), stranger
    say("stranger", code=stranger.code)


if __name__ == "__main__":
    main(*sys.argv[1:])
