"""Look-ups and tests of addresses: a caller whose names do not resolve keeps no other caller waiting."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from contracts.urls import NamedUrl, parse_url
from contracts.webhooks import WebhookEndpoint
from gateway.rules.webhook_retries import WebhookAnswer
from gateway.webhooks.service import AT_ONCE_PER_CALLER, WebhookOptions, Webhooks
from gateway.webhooks.turns import CallerTurns
from ops.background import Background

SLOW = parse_url("https://slow.example/")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class NoSecrets:
    """A registry in which nothing signs."""

    def secrets_of(self, *_: object) -> tuple[str, ...]:
        return ()


def endpoint(caller: str) -> WebhookEndpoint:
    return WebhookEndpoint(
        id="ep_1", caller=caller, url="https://slow.example/", events=(), secrets=(), made_at=NOW, since=NOW
    )


async def test_a_caller_has_a_few_turns_at_once_and_another_one_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = Webhooks(WebhookOptions(tmp_path), tasks=cast(Any, None), background=Background())
    asked: list[NamedUrl] = []
    begun, answered = asyncio.Event(), asyncio.Event()

    async def look(url: NamedUrl) -> None:
        asked.append(url)
        begun.set()
        if url == SLOW:
            await answered.wait()

    monkeypatch.setattr(webhooks.sender, "objection_to", look)
    greedy = [asyncio.create_task(webhooks.objection_to("greedy", SLOW)) for _ in range(20)]
    await begun.wait()
    await webhooks.objection_to("modest", parse_url("https://fast.example/"))
    assert len(asked) == AT_ONCE_PER_CALLER + 1
    answered.set()
    await asyncio.gather(*greedy)
    assert len(asked) == 21
    await webhooks.close()


async def test_a_test_takes_a_turn_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webhooks = Webhooks(WebhookOptions(tmp_path), tasks=cast(Any, None), background=Background())
    webhooks.registry = cast(Any, NoSecrets())
    sent: list[str] = []
    begun, answered = asyncio.Event(), asyncio.Event()

    async def send(url: str, *_: object) -> WebhookAnswer:
        sent.append(url)
        begun.set()
        await answered.wait()
        return WebhookAnswer(500)

    monkeypatch.setattr(webhooks.sender, "send", send)
    tests = [asyncio.create_task(webhooks.test(endpoint("greedy"))) for _ in range(20)]
    await begun.wait()
    assert len(sent) == AT_ONCE_PER_CALLER
    answered.set()
    await asyncio.gather(*tests)
    assert len(sent) == 20
    await webhooks.close()


async def test_nothing_is_kept_of_a_caller_whose_turns_are_over() -> None:
    turns = CallerTurns(1)
    async with turns.of("a"):
        assert turns.callers == 1
        with pytest.raises(RuntimeError):
            async with turns.of("b"):
                raise RuntimeError
    assert turns.callers == 0
