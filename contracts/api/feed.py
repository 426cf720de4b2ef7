"""What stands in the events of `GET /tasks/events`, beside whole tasks."""

from typing import Literal

from msgspec import Struct


class FeedOpened(Struct, frozen=True, kw_only=True):
    """The stream is on. *resumed*: all that changed after `Last-Event-ID` follows; otherwise list the tasks now."""

    resumed: bool


class FeedReset(Struct, frozen=True, kw_only=True):
    """Changes may be missing: list the tasks again. The stream goes on.

    *reason*: since `Last-Event-ID` more has changed than is remembered (`too_old`); this gateway does not know that id,
    or reads the records anew (`unknown`); more changed at once than one stream is sent (`too_much`).
    """

    reason: Literal["too_old", "too_much", "unknown"]


class TaskNamed(Struct, frozen=True, kw_only=True):
    """A task that left the statuses which are followed, or whose record is gone."""

    id: str


class TaskPlace(Struct, frozen=True, kw_only=True):
    """Where a task that waits stands now, as in its `queue`."""

    id: str
    position: int
    expected_wait_s: float | None


class TaskPlaces(Struct, frozen=True, kw_only=True):
    """The tasks that stand elsewhere than the stream said last."""

    places: tuple[TaskPlace, ...]
