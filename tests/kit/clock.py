"""The clock of an event loop, which tests move instead of waiting."""

import asyncio

import pytest


def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """*seconds* pass at once for the loop that runs now, as for that of a process that was stopped meanwhile."""
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + seconds)
