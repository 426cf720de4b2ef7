"""Fallback episodes as values: what is counted, and what is written next over the newest episode. Pure."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.lanes import FallbackCause, FallbackEpisode

EPISODES_MAX: Final = 64
# Two gateways see a lane come back a moment apart, by clocks that are up to 0.25 s off the server's.
SAME_MOMENT_S: Final = 0.5
# The next episode is written this long after one ended, so that every gateway has added its last counts to the one that
# ended.
SETTLE_S: Final = 2.5
# While an episode lasts, some gateway writes it again this often.
VOUCH_S: Final = 60.0
# An episode that no gateway has written for this long ended with the last write: no gateway has run since.
FORGOTTEN_S: Final = 180.0


class Sent(Struct, frozen=True):
    """Requests that this gateway sent to the degraded worker for one cause, the first one at *since*."""

    cause: FallbackCause
    since: datetime
    served: int


def noted(sent: Sequence[Sent], cause: FallbackCause, served: int, now: datetime) -> tuple[Sent, ...]:
    """*sent* with *served* more requests, which went for *cause* at *now*."""
    if sent and sent[-1].cause == cause:
        return (*sent[:-1], replace(sent[-1], served=sent[-1].served + served))
    return (*sent, Sent(cause, now, served))


def advance(
    episode: FallbackEpisode | None,
    sent: Sequence[Sent],
    *,
    model: str,
    gateway: str,
    cause: FallbackCause | None,
    now: datetime,
    vouched_at: datetime | None = None,
) -> tuple[FallbackEpisode | None, tuple[Sent, ...]]:
    """The next value that *gateway* writes over *episode*, or None if there is nothing to write now; and what is then
    left of *sent*. *cause* is why a request would be sent to the degraded worker now; None if it would not be.
    *vouched_at* is when any gateway last wrote *episode*.

    1. A request went there for the cause of *episode*, while it lasted or about when it ended: counted on it.
    2. A request went there for another cause, after *episode* began: it ended then.
    3. A request went there for another cause, about when *episode* began or before: it is too late to count it on the
       one before, so it is counted on *episode*.
    4. *episode* ended a while ago, or there was none: the next one begins with the first request.
    5. No request is left to count, and routing changed its mind: *episode* ends now.
    6. No gateway has vouched for *episode* for FORGOTTEN_S: it ended with the last write, whatever routing says now.
    7. It goes on, and no gateway has vouched for it for VOUCH_S: it is written again as it is.
    """
    lasts = episode is not None and episode.until is None
    silent_s = 0.0 if vouched_at is None else (now - vouched_at).total_seconds()
    if episode is not None and vouched_at is not None and lasts and silent_s > FORGOTTEN_S:  # 6
        return replace(episode, until=max(vouched_at, episode.since)), tuple(sent)
    if not sent:
        if episode is not None and lasts and episode.cause != cause:  # 5
            return replace(episode, until=max(now, episode.since)), ()
        return (episode if lasts and silent_s > VOUCH_S else None), ()  # 7
    first, rest = sent[0], tuple(sent[1:])
    same_moment = timedelta(seconds=SAME_MOMENT_S)
    if episode is not None:
        counted = _counted(episode, gateway, first.served)
        is_of_it = episode.until is None or first.since <= episode.until + same_moment
        if is_of_it and first.cause == episode.cause:  # 1
            return (counted if first.served else None), rest
        if lasts and first.since > episode.since + same_moment:  # 2
            return replace(episode, until=first.since), tuple(sent)
        if lasts:  # 3
            return (counted if first.served else None), rest
        if episode.until is not None and now < episode.until + timedelta(seconds=SETTLE_S):
            return None, tuple(sent)
    since = first.since if episode is None or episode.until is None else max(first.since, episode.until)
    begun = FallbackEpisode(model=model, cause=first.cause, since=since)
    return _counted(begun, gateway, first.served), rest  # 4


def _counted(episode: FallbackEpisode, gateway: str, served: int) -> FallbackEpisode:
    if not served:
        return episode
    by = episode.served_by | {gateway: episode.served_by.get(gateway, 0) + served}
    return replace(episode, served=episode.served + served, served_by=by)


def is_same(one: FallbackEpisode, other: FallbackEpisode) -> bool:
    """Whether both are the same episode, perhaps at different times."""
    return (one.since, one.cause) == (other.since, other.cause)


def with_newer(episodes: Sequence[FallbackEpisode], newer: FallbackEpisode) -> list[FallbackEpisode]:
    """*episodes*, the oldest first, with *newer* at the end, or in the place of its earlier version."""
    before = episodes[:-1] if episodes and is_same(episodes[-1], newer) else episodes
    return [*before, newer][-EPISODES_MAX:]


def still_to_write(now: tuple[Sent, ...], before: tuple[Sent, ...], left: tuple[Sent, ...]) -> tuple[Sent, ...]:
    """The counts of *now* still to be written; *now* grew out of *before*, of which *left* is not written yet."""
    written = before[: len(before) - len(left)]
    if not written:
        return now
    more = now[0].served - written[0].served
    return (replace(now[0], served=more), *now[1:]) if more else now[1:]
