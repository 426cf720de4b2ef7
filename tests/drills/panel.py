"""`make panel`: how soon the list of tasks is drawn in a browser, and what many open pages cost the gateway.

The whole system runs as `warmlane up` starts it; only its pipelines do nothing. The first part is a real Chromium with
an empty cache. The second part sends, for each page, the requests that Chromium was seen to send, and keeps the page's
one event stream open: five hundred browsers do not fit on one machine.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import click
import httpx
import psutil
from msgspec import Struct
from playwright.async_api import Browser, expect
from rich.console import Console
from rich.table import Table

from tests.drills.soak import NoopSystem
from tests.kit.panel import chromium, panel_in

TASKS: Final = 1_000
PAGES: Final = 500
LOADS: Final = 5
PAINT_MAX_MS: Final = 1_000.0
PAGE_SIZE: Final = 50
# A browser opens six connections at most, and the pages of one minute are not all opened at one moment.
OPENING_AT_ONCE: Final = 25
IDLE_S: Final = 10.0
KEPT_S: Final = 1.0
HEARD_WITHIN_S: Final = 60.0
STREAM: Final = "/tasks/events"
# The gateway takes a client without this header for no browser, and sends it no page.
AS_A_BROWSER: Final = {"Accept": "text/html,*/*;q=0.8"}
# When the first card stands in the document, in ms since the navigation began.
WATCH_FOR_CARDS: Final = """
new MutationObserver((_, watcher) => {
    if (!document.querySelector(".task-card")) return;
    requestAnimationFrame(() => (window.firstCardsMs = performance.now()));
    watcher.disconnect();
}).observe(document, { childList: true, subtree: true });
"""


class Load(Struct, frozen=True):
    """One page that was opened at the list of tasks: the times from the navigation to the first paint and to the first
    card, and the time from the slowest click for older tasks until they were drawn."""

    first_paint_ms: float
    first_cards_ms: float
    slowest_older_ms: float
    asked: tuple[str, ...]
    """The paths that the page requested, in order."""


class Crowd(Struct, frozen=True):
    """Many pages, open at the same time, and the gateway meanwhile."""

    pages: int
    open_streams: int
    heard: int
    """How many pages heard of the task that was submitted when all were open."""
    opened_s: float
    before_bytes: int
    with_pages_bytes: int
    idle_share: float
    """The gateway's share of one core while nothing happened."""


class Verdict(Struct, frozen=True):
    what: str
    measured: str
    asked: str
    passed: bool


def judge(loads: Sequence[Load], crowd: Crowd) -> list[Verdict]:
    """What the drill measured, beside the aims. The first one depends on the machine."""
    paint_ms = statistics.median(load.first_cards_ms for load in loads)
    return [
        Verdict("the list is painted, p50 (ms)", f"{paint_ms:.0f}", f"< {PAINT_MAX_MS:.0f}", paint_ms < PAINT_MAX_MS),
        Verdict(
            "streams of a page",
            f"{max(sum(path == STREAM for path in load.asked) for load in loads)}",
            "1",
            all(sum(path == STREAM for path in load.asked) == 1 for load in loads),
        ),
        Verdict("pages with a stream", str(crowd.open_streams), str(crowd.pages), crowd.open_streams == crowd.pages),
        Verdict("pages told of a new task", str(crowd.heard), str(crowd.pages), crowd.heard == crowd.pages),
    ]


async def fill(url: str, count: int) -> None:
    """Submits *count* tasks and waits for their ends."""
    limits = httpx.Limits(max_connections=OPENING_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            model = "anisora" if number % 2 else "phr00t"
            answer = await client.post("/generate", json={"model": model, "prompt": f"number {number}"})
            answer.raise_for_status()
            task = answer.json()
            while task["status"] not in ("done", "failed"):
                task = (await client.get(f"/tasks/{task['id']}?wait=30")).json()

        turns = asyncio.Semaphore(OPENING_AT_ONCE)

        async def in_turn(number: int) -> None:
            async with turns:
                await one(number)

        await asyncio.gather(*map(in_turn, range(count)))


async def look(browser: Browser, url: str, *, count: int) -> Load:
    """Opens the list of *count* tasks with an empty cache, and goes down to the last one."""
    async with panel_in(browser, url) as panel:
        await panel.page.add_init_script(WATCH_FOR_CARDS)
        await panel.page.goto(f"{url}/#/watch")
        cards = panel.page.locator(".task-card")
        await expect(cards).to_have_count(min(count, PAGE_SIZE))
        first_cards_ms = float(await panel.page.evaluate("window.firstCardsMs"))
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        first_paint_ms = float(await panel.page.evaluate(paint))
        asked = tuple(httpx.URL(each).path for each in panel.asked if each.startswith(url))
        older_ms = [0.0]
        for drawn in range(2 * PAGE_SIZE, count + 1, PAGE_SIZE):
            begun_s = time.perf_counter()
            await panel.page.get_by_role("button", name="Show older ones").click()
            await expect(cards).to_have_count(drawn)
            older_ms.append((time.perf_counter() - begun_s) * 1e3)
        return Load(first_paint_ms, first_cards_ms, max(older_ms), asked)


async def gather_crowd(up: NoopSystem, asked: Sequence[str], *, pages: int, idle_s: float) -> Crowd:
    """*pages* pages that each request *asked*, and follow the stream among it until a submitted task has arrived."""
    gateway = psutil.Process(up.find("warmlane gateway"))
    before_bytes = gateway.memory_info().rss
    turns = asyncio.Semaphore(OPENING_AT_ONCE)
    is_open = [asyncio.Event() for _ in range(pages)]
    heard = [asyncio.Event() for _ in range(pages)]
    submitted = asyncio.Event()
    task_ids: list[str] = []

    # The client reuses no connection that the gateway may be about to close; a browser would retry such a request.
    limits = httpx.Limits(keepalive_expiry=KEPT_S)

    @contextlib.asynccontextmanager
    async def page(number: int) -> AsyncIterator[AsyncIterator[str]]:
        async with contextlib.AsyncExitStack() as stack:
            timeout = httpx.Timeout(60, read=None)
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=up.url, timeout=timeout, limits=limits, verify=False)
            )
            async with turns:
                for path in asked:
                    if path != STREAM:
                        (await client.get(path, headers=AS_A_BROWSER)).raise_for_status()
                answer = await stack.enter_async_context(client.stream("GET", STREAM))
            answer.raise_for_status()
            is_open[number].set()
            yield answer.aiter_lines()

    async def stay(number: int) -> None:
        async with page(number) as lines:
            await submitted.wait()
            async for line in lines:
                if line.startswith("data:") and task_ids[0] in line:
                    heard[number].set()
                    return

    async with asyncio.TaskGroup() as group:
        staying = [group.create_task(stay(number)) for number in range(pages)]
        begun_s = time.perf_counter()
        for event in is_open:
            await event.wait()
        opened_s = time.perf_counter() - begun_s
        before_s = sum(gateway.cpu_times()[:2])
        await asyncio.sleep(idle_s)
        idle_share = (sum(gateway.cpu_times()[:2]) - before_s) / idle_s
        with_pages_bytes = gateway.memory_info().rss
        task_ids.append((await asyncio.to_thread(up.submit))["id"])
        submitted.set()
        await asyncio.wait(staying, timeout=HEARD_WITHIN_S)
        for each in staying:
            each.cancel()
    return Crowd(
        pages=pages,
        open_streams=sum(event.is_set() for event in is_open),
        heard=sum(event.is_set() for event in heard),
        opened_s=opened_s,
        before_bytes=before_bytes,
        with_pages_bytes=with_pages_bytes,
        idle_share=idle_share,
    )


async def measure(
    up: NoopSystem, *, tasks: int, pages: int, loads: int, idle_s: float = IDLE_S
) -> tuple[list[Load], Crowd]:
    """Fills *up*, opens the list *loads* times in a browser, then lets *pages* pages stay open."""
    await fill(up.url, tasks)
    async with chromium() as browser:
        seen = [await look(browser, up.url, count=tasks) for _ in range(loads)]
    return seen, await gather_crowd(up, seen[0].asked, pages=pages, idle_s=idle_s)


def report(console: Console, loads: Sequence[Load], crowd: Crowd, *, tasks: int) -> bool:
    """Prints the tables; returns whether all verdicts passed."""
    figures = Table("figure", "measured", title=f"The panel with {tasks} tasks")
    figures.add_row("first paint, p50 (ms)", f"{statistics.median(load.first_paint_ms for load in loads):.0f}")
    figures.add_row("list painted, each load (ms)", ", ".join(f"{load.first_cards_ms:.0f}" for load in loads))
    figures.add_row("50 older ones drawn, slowest (ms)", f"{max(load.slowest_older_ms for load in loads):.0f}")
    figures.add_row(f"{crowd.pages} pages opened in (s)", f"{crowd.opened_s:.1f}")
    grown_mb = (crowd.with_pages_bytes - crowd.before_bytes) / 1e6
    figures.add_row(
        "the gateway's memory before, and more with them (MB)", f"{crowd.before_bytes / 1e6:.0f}, {grown_mb:.0f}"
    )
    figures.add_row("the gateway's share of a core, idle with them (%)", f"{100 * crowd.idle_share:.1f}")
    console.print(figures)
    table = Table("what", "measured", "asked", "")
    verdicts = judge(loads, crowd)
    for verdict in verdicts:
        table.add_row(verdict.what, verdict.measured, verdict.asked, "pass" if verdict.passed else "MISSED")
    console.print(table)
    return all(verdict.passed for verdict in verdicts)


@click.command(epilog="Example:\n\n  python -m tests.drills.panel --tasks 200 --pages 50")
@click.option("--tasks", type=click.IntRange(PAGE_SIZE), default=TASKS, show_default=True, help="Tasks in the list.")
@click.option("--pages", type=click.IntRange(1, 900), default=PAGES, show_default=True, help="Pages open at once.")
def command(tasks: int, pages: int) -> None:
    """Measures the panel's list in Chromium, and many open pages at one gateway."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        up = NoopSystem(Path(folder))
        try:
            up.start()
            console.print(f"{tasks} tasks are made first")
            loads, crowd = asyncio.run(measure(up, tasks=tasks, pages=pages, loads=LOADS))
        finally:
            up.stop()
    if not report(console, loads, crowd, tasks=tasks):
        raise SystemExit(1)


if __name__ == "__main__":
    command()
