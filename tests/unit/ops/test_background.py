"""The background tasks of a process go on; the process reports a task that cannot do its work."""

import asyncio

import pytest

from ops import background
from ops.background import Background
from ops.ending import end
from tests.kit.support import eventually


async def test_a_background_task_that_fails_is_reported_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_FIRST_S", 0.01)
    pieces, tries, may_go_on = Background(), 0, asyncio.Event()

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise KeyError("a prompt")
        pieces.works("sweeper")
        await may_go_on.wait()

    kept = asyncio.create_task(pieces.keep("sweeper", work))

    async def is_reported() -> bool:
        return pieces.troubles == {"sweeper": "sweeper ended with KeyError; again in 0.02 s"}

    await eventually(is_reported)

    async def well() -> bool:
        return tries == 3 and pieces.troubles == {}

    await eventually(well)
    may_go_on.set()
    await kept
    assert pieces.names == []


async def test_a_background_task_is_cancelled_like_any_other() -> None:
    pieces = Background()

    async def work() -> None:
        await asyncio.Event().wait()

    kept = asyncio.create_task(pieces.keep("janitor", work))
    await asyncio.sleep(0)
    assert pieces.names == ["janitor"]
    await end(kept)
    assert (pieces.names, pieces.troubles) == ([], {})
