"""`warmlane status`: lanes, queues, slots, fallbacks and cold starts as one gateway knows them."""

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click
from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from contracts.api.admin import (
    ColdStartsView,
    FallbacksView,
    IgnoredControl,
    LanesView,
    LaneView,
    OrderView,
    QueuesView,
    RunningView,
)
from ops.commands.api.client import CommandClient
from ops.commands.api.options import Gateway, gateway_options
from ops.commands.api.problems import Unreachable
from ops.commands.options import trace_link_option
from ops.commands.trace import trace_link

REFRESH_S: Final = 1.0
MODES: Final = ("auto", "degraded")
EPISODES_SHOWN: Final = 5
STARTS_SHOWN: Final = 5
PATHS: Final = {
    "lanes": "/admin/lanes",
    "queue": "/admin/queue",
    "fallbacks": "/admin/fallbacks",
    "cold_starts": "/admin/cold_starts",
}
COLOURS: Final = {
    "warm": "green",
    "busy": "green",
    "resident": "green",
    "empty": "dim",
    "evicted": "dim",
    "unhealthy": "red",
    "quarantined": "red",
    "crash_looping": "red",
    "quota_denied": "magenta",
    "capacity_denied": "magenta",
}


class Status(Struct, frozen=True):
    """All that the command shows."""

    lanes: LanesView
    queue: QueuesView
    fallbacks: FallbacksView
    cold_starts: ColdStartsView


def screen(status: Status, jaeger_url: str | None = None) -> RenderableType:
    """*status* for a terminal."""
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in _parts(status, jaeger_url)))


def _parts(status: Status, jaeger_url: str | None) -> Iterator[RenderableType]:
    now = status.lanes.now
    yield _lanes(status.lanes, now)
    yield from _warnings(status)
    yield _queues(status.queue, jaeger_url)
    if status.queue.order is not None:
        yield _order(status.queue.order)
    if status.lanes.slots:
        yield _slots(status.lanes, now)
    yield _fallbacks(status.fallbacks, now)
    yield _cold_starts(status.cold_starts, now)


def _lanes(lanes: LanesView, now: datetime) -> Table:
    table = _table("model", "mode", "route (rule)", "lane", "state", "since", "heard", "detail")
    for model in lanes.models:
        mode = model.mode if model.mode == "auto" else f"[yellow]{escape(model.mode)}[/]"
        colour = "green" if model.route.outcome == "lane" else "yellow"
        first = (escape(model.model), mode, f"[{colour}]{escape(model.route.outcome)}[/] ({model.route.rule})")
        rows = [_lane(lane, now) for lane in model.lanes] or [("[dim]none[/]", "", "", "", "")]
        for row in rows:
            table.add_row(*first, *row)
            first = ("", "", "")
    return table


def _lane(lane: LaneView, now: datetime) -> tuple[str, ...]:
    return (
        escape(lane.worker),
        f"[red]silent[/], was {escape(lane.state)}" if lane.silent else _coloured(lane.state),
        span((now - lane.since).total_seconds()),
        span(lane.health_age_s),
        escape(lane.detail),
    )


def _warnings(status: Status) -> Iterator[RenderableType]:
    if status.queue.leader is None:
        yield Text("no degraded worker leads: requests without a lane wait for one", style="yellow")
    if status.lanes.judged_at < status.lanes.now:
        yield Text("this gateway was cut off from the queue just now: lanes are judged as before that", style="yellow")
    for ignored in status.lanes.ignored_control:
        yield Text(f"ignored in control: {ignored.key} = {ignored.value!r}; {_advice(ignored)}", style="red")


def _advice(ignored: IgnoredControl) -> str:
    if ignored.value in MODES:
        return f"no model has this name; `nats kv del control {ignored.key}` removes it"
    return "use auto or degraded"


def _queues(queues: QueuesView, jaeger_url: str | None) -> Table:
    table = _table("queue", "waiting", "oldest", "running", "a new task waits")
    for queue in queues.queues:
        limit = f" of {queue.max_msgs}" if queue.max_msgs else ""
        oldest = "" if queue.oldest_age_s is None else span(queue.oldest_age_s)
        running = "\n".join(_running(task, jaeger_url) for task in queue.running) or "[dim]nothing[/]"
        waits = ", ".join(
            f"{escape(estimate.model)} {span(estimate.wait_s)}"
            for estimate in queue.estimates
            if estimate.wait_s is not None
        )
        table.add_row(
            escape(queue.stream), f"{queue.messages}{limit}", oldest, running, waits or "[dim]not measured[/]"
        )
    if queues.leader is not None:
        table.caption = f"{escape(queues.leader.worker)} on {escape(queues.leader.slot)} serves DEGRADED"
    return table


def _order(order: OrderView) -> Table:
    table = _table("order", "loaded", "swaps a task", "time in swaps", "slices ended by", "waits, by class")
    limits = f"\nat most {order.swap_share:.0%} in swaps,\nslices of {span(order.slice_max_s)}"
    ends = "\n".join(f"{escape(cause)} {count}" for cause, count in sorted(order.slice_ends.items()))
    waits = "\n".join(
        f"{escape(group.priority)}: {group.count} for {escape(group.model)}, {span(group.oldest_s)}"
        for group in order.waiting
    )
    table.add_row(
        escape(order.name) + ("" if order.name == "fifo" else limits),
        escape(order.loaded or "-"),
        "[dim]no task yet[/]" if order.swaps_per_task is None else f"{order.swaps_per_task:.2f}",
        "" if order.swap_time_share is None else f"{order.swap_time_share:.0%}",
        ends or "[dim]none yet[/]",
        waits or "[dim]nobody[/]",
    )
    return table


def _running(task: RunningView, jaeger_url: str | None) -> str:
    steps = "" if task.step is None else f", step {task.step} of {task.steps}"
    left = "" if task.left_s is None else f", about {span(task.left_s)} left"
    text = escape(f"{task.model} on {task.worker or '?'}{steps}{left}")
    if task.trace_id is None:
        return text
    link = trace_link(task.trace_id, jaeger_url)
    named = escape(f"trace {task.trace_id}")
    return f"{text}\n" + (named if link == task.trace_id else f"[link={link}]{named}[/link]")


def _slots(lanes: LanesView, now: datetime) -> Table:
    table = _table("slot", "worker", "model", "state", "since", "detail")
    for slot in lanes.slots:
        since = span((now - slot.since).total_seconds())
        row = (escape(slot.slot), escape(slot.worker), escape(slot.model or "-"), _coloured(slot.state), since)
        table.add_row(*row, escape(slot.detail))
    return table


def _fallbacks(fallbacks: FallbacksView, now: datetime) -> RenderableType:
    if not fallbacks.current and not fallbacks.past:
        return Text("no fallback yet", style="dim")
    table = _table("fallback", "cause", "began", "lasted", "requests")
    for episode in fallbacks.current:
        lasted = span((now - episode.since).total_seconds())
        cause = f"[yellow]{escape(episode.cause)}[/]"
        table.add_row(escape(episode.model), cause, _clock(episode.since), f"{lasted}, goes on", str(episode.served))
    for episode in fallbacks.past[:EPISODES_SHOWN]:
        lasted = "" if episode.until is None else span((episode.until - episode.since).total_seconds())
        table.add_row(
            escape(episode.model),
            escape(episode.cause),
            _clock(episode.since),
            lasted,
            str(episode.served),
            style="dim",
        )
    return table


def _cold_starts(cold_starts: ColdStartsView, now: datetime) -> RenderableType:
    if cold_starts.share is None:
        return Text("no cold start yet", style="dim")
    table = _table("cold start", "lane", "ago", "warm after", "detail")
    for start in cold_starts.starts[:STARTS_SHOWN]:
        taken = "[red]gave up[/]" if start.seconds is None else f"{start.seconds:.1f} s"
        ago = span((now - start.ended_at).total_seconds())
        table.add_row(escape(start.model), escape(start.worker), ago, taken, escape(start.detail))
    count = len(cold_starts.starts)
    table.caption = f"{cold_starts.share:.1%} of {count} warm within {span(cold_starts.target_s)} (SC-006)"
    return table


def _table(*headings: str) -> Table:
    # narrow enough for a terminal of 80 columns
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold underline", caption_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _coloured(state: str) -> str:
    return f"[{COLOURS.get(state, 'yellow')}]{escape(state)}[/]"


def _clock(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def span(seconds: float) -> str:
    """A time as a person reads it: 4.2 s, 3 min 5 s, 2 h 7 min."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def read(client: CommandClient) -> Status:
    """The status now. Raises what `CommandClient` raises."""
    return Status(
        lanes=client.get(PATHS["lanes"], LanesView),
        queue=client.get(PATHS["queue"], QueuesView),
        fallbacks=client.get(PATHS["fallbacks"], FallbacksView),
        cold_starts=client.get(PATHS["cold_starts"], ColdStartsView),
    )


def follow(client: CommandClient, console: Console, jaeger_url: str | None = None) -> None:
    """Draws the status every second, until Ctrl-C. Waits for a gateway that is away."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                shown = screen(read(client), jaeger_url)
            except Unreachable as error:
                shown = Text(error.message, style="red")
            live.update(shown, refresh=True)
            time.sleep(REFRESH_S)


@click.command(
    epilog="Examples:\n\n  warmlane status\n\n  warmlane status --watch\n\n"
    "  warmlane status --json | python3 -m json.tool\n\n  warmlane status --url http://127.0.0.1:8080"
)
@click.option("--watch", is_flag=True, help="Go on, drawn anew every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers, once, as one JSON object.")
@trace_link_option
@gateway_options
def command(watch: bool, as_json: bool, jaeger_url: str | None, gateway: Gateway) -> None:
    """Show lanes, queues, slots, fallbacks and cold starts, and where a request would go now."""
    if watch and as_json:
        raise click.UsageError("--json prints once; leave out --watch")
    with gateway.client() as client:
        if as_json:
            answers: dict[str, Any] = {name: client.get(path, dict[str, Any]) for name, path in PATHS.items()}
            click.echo(json.dumps(answers))
        elif watch:
            with contextlib.suppress(KeyboardInterrupt):
                follow(client, Console(), jaeger_url)
        else:
            Console().print(screen(read(client), jaeger_url))
