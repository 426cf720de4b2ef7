"""The bodies of the events of `GET /tasks/events` that are not whole tasks."""

from typing import Literal

from msgspec import Struct


class FeedOpened(Struct, frozen=True, kw_only=True):
    """The stream has begun. *resumed*: every change after `Last-Event-ID` follows; otherwise list the tasks now."""

    resumed: bool


class FeedReset(Struct, frozen=True, kw_only=True):
    """Changes may be missing: list the tasks again. The stream goes on.

    *reason*: more has changed since `Last-Event-ID` than the gateway remembers (`too_old`); this gateway does not know
    that id, or reads the records anew (`unknown`); more changed at once than one stream is sent (`too_much`).
    """

    reason: Literal["too_old", "too_much", "unknown"]


class TaskNamed(Struct, frozen=True, kw_only=True):
    """A task that no longer has a status that the stream follows, or whose record is gone."""

    id: str


class TaskPlace(Struct, frozen=True, kw_only=True):
    """The place of a waiting task now, as in its `queue`."""

    id: str
    position: int
    expected_wait_s: float | None


class TaskPlaces(Struct, frozen=True, kw_only=True):
    """The tasks whose place has changed since the stream last reported it."""

    places: tuple[TaskPlace, ...]
