"""Reports how far a `warmlane up` has come."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from rich.markup import escape

from contracts.lanes import LaneHeartbeat, LaneState, Leadership
from contracts.topology import LEADER_KEY
from ops.commands.up.pasting import lines_for_each_model, warmlane_line
from ops.commands.up.screen import Screen
from ops.commands.up.setup import SystemSetup
from ops.commands.up.start import DENIED, StartStage, how_started
from ops.lanes.quota import POLL_S
from ops.nats.bucket import Versioned

BEFORE_WARM: Final = frozenset({LaneState.STARTING, LaneState.LOADING})
COLOURS: Final = {LaneState.WARM: "green", LaneState.CRASH_LOOPING: "red"}


class StartReport:
    """Shows on *screen* what lanes, degraded workers and gateway have reported since *begun_at*: each change once."""

    def __init__(
        self,
        setup: SystemSetup,
        screen: Screen,
        failing: Callable[[], list[str]],
        *,
        begun_s: float,
        begun_at: datetime,
    ) -> None:
        """*failing* names the processes that end again and again. *begun_s* is *begun_at* in monotonic seconds."""
        self._setup, self._screen, self._failing = setup, screen, failing
        self._begun_s, self._begun_at = begun_s, begun_at
        self._states: dict[str, LaneState] = {}
        self._said: dict[str, tuple[LaneState, bool]] = {}
        self._leader: str | None = None
        self._answers = False
        self._said_start: StartStage | None = None
        self._draining = False
        self.needs_key = True
        """Whether a client has to present an API key."""
        self.lanes_imported = asyncio.Event()
        """Set when every lane has imported its libraries."""
        self.led = asyncio.Event()
        """Set when a degraded worker leads."""

    def on_lane(self, entry: Versioned[LaneHeartbeat]) -> None:
        """A lane reported."""
        lane = entry.value
        if lane is None:
            return
        if lane.started_at < self._begun_at:
            return  # what an earlier run left in the bucket
        # a busy lane is a warm one: only what changes for a caller is shown
        state = lane.state.readiness
        self._states[lane.worker] = state
        if not (self._said.get(lane.worker) == (LaneState.CRASH_LOOPING, True) and state in BEFORE_WARM):
            self._say_lane(lane, state)
        states = list(self._states.values())
        if len(states) - states.count(LaneState.STARTING) >= self._setup.lane_count:
            self.lanes_imported.set()
        self._say_start()

    def on_leader(self, entry: Versioned[Leadership]) -> None:
        """The leadership of the degraded workers changed, or was renewed."""
        if self._draining or entry.key != LEADER_KEY:
            return
        if entry.is_deleted:
            if self._leader is not None:
                self._leader = None
                self._screen.say("[yellow]no degraded worker leads[/]: requests without a lane wait")
            return
        leadership = entry.value
        if leadership is None:
            return
        if leadership.since < self._begun_at or self._leader == leadership.owner:
            return  # from an earlier run, or a renewal
        self._leader = leadership.owner
        self.led.set()
        self._screen.say(f"degraded worker {leadership.worker} [green]leads[/]")
        self._say_start()

    async def gateway_answers(self) -> None:
        """Shows that the gateway answers. Returns once the screen has said that everything runs."""
        self._answers = True
        url = self._setup.url
        self._screen.say(f"[bold]{url}[/]  ·  docs {url}/docs  ·  logs {self._setup.data_dir / 'logs'}")
        needs = " (with a key of the scope `metrics`)" if self.needs_key else ""
        self._screen.say(f"metrics of every process, for Prometheus: {url}/metrics{needs}")
        if not self._setup.lane_count:
            self._screen.say("no lanes were asked for: the degraded worker serves every request")
        while self._said_start is not StartStage.READY:
            self._say_start()
            await asyncio.sleep(POLL_S)

    def drains(self) -> None:
        """From now on, shows nothing more about the start or about which degraded worker leads."""
        self._draining = True

    def _say_lane(self, lane: LaneHeartbeat, state: LaneState) -> None:
        news = (state, bool(lane.detail))
        if self._said.get(lane.worker) == news:
            return
        self._said[lane.worker] = news
        detail, log_file = escape(lane.detail), self._setup.log_file(lane.worker)
        if state is LaneState.STARTING and detail:
            self._screen.say(f"[red]{lane.worker}[/] {detail}. Why: {log_file}")
            return
        text = f"lane {lane.worker} is [{COLOURS.get(state, 'yellow')}]{state.value}[/]"
        if state is LaneState.WARM and lane.warm_after_s:
            text += f" after {lane.warm_after_s:.1f} s"
        if detail:
            text += f": {detail}"
        if state is LaneState.CRASH_LOOPING:
            text += f". Why: {log_file}"
        if state in DENIED and self._setup.lanes.get(lane.model) == 1:
            text += "; its requests go to the degraded worker"
        self._screen.say(text)

    def _say_start(self) -> None:
        failing = self._failing()
        start = how_started(
            list(self._states.values()),
            wanted=self._setup.lane_count,
            leads=self._leader is not None,
            answers=self._answers,
            failing=failing,
        )
        if self._draining or start is StartStage.NOT_YET or start is self._said_start:
            return
        took_s = time.monotonic() - self._begun_s
        looping = [lane for lane, state in self._states.items() if state is LaneState.CRASH_LOOPING]
        if start is StartStage.READY and self._said_start is None:
            self._screen.say(f"ready in {took_s:.1f} s; paste one of these, then open the .mp4:")
        elif start is StartStage.READY:
            self._screen.say("ready: every part runs now")
        else:
            self._screen.say(
                f"[yellow]serves after {took_s:.1f} s[/], but [red]"
                f"{escape(', '.join([*failing, *looping]))} ends again and again[/]; paste one of these:"
            )
        if self._said_start is None:
            self._offer_lines()
        self._said_start = start

    def _offer_lines(self) -> None:
        for lines in lines_for_each_model(self._setup, needs_key=self.needs_key):
            self._screen.offer(lines)
        self._screen.say(f"or: {warmlane_line(self._setup.url, 'demo')}   ·   Ctrl-C stops everything")
