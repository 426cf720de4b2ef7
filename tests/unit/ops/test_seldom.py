"""A line that would be repeated many times is logged once in a while."""

from types import SimpleNamespace

import pytest

import ops.telemetry.seldom
from ops.telemetry.seldom import Seldom


def test_a_kind_is_news_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(ops.telemetry.seldom, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    seldom, said = Seldom(every_s=60), []

    def say(event: str, **fields: object) -> None:
        said.append((clock.now_s, event, fields))

    for now_s in (100.0, 100.2, 159.9, 160.0, 160.2):
        clock.now_s = now_s
        seldom.log(say, "heartbeat_lost", error="away")
        seldom.log(say, "slot_not_shown")
    assert said == [
        (at_s, event, fields)
        for at_s in (100.0, 160.0)
        for event, fields in (("heartbeat_lost", {"error": "away"}), ("slot_not_shown", {}))
    ]
