"""One stream for many tasks: what is sent, from where it goes on, and when it has to begin anew."""

from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.tasks import TaskStatus
from gateway.boards.change_log import ChangeLog, TooOld
from gateway.boards.feeds import UNSENT_MAX, Feed, Feeds, News, Wanted, sent_of
from gateway.boards.task_index import TaskRow
from tests.kit.records import NOW

EVERYTHING = Wanted()
PENDING, PROCESSING, DONE = TaskStatus.PENDING, TaskStatus.PROCESSING, TaskStatus.DONE


def row(task_id: str, revision: int, status: TaskStatus = PENDING, **changes: Any) -> TaskRow:
    made = TaskRow(
        id=task_id,
        caller="alice",
        model="anisora",
        status=status,
        created_at=NOW,
        written_at=NOW + timedelta(seconds=revision),
        revision=revision,
        paths=(),
    )
    return replace(made, **changes)


class Gateway:
    """What one gateway knows: `Feeds`, with the rows that a task board would keep."""

    def __init__(self, most: int = 100) -> None:
        self.feeds = Feeds(ChangeLog(most))
        self.rows: dict[str, TaskRow] = {}
        self.feeds.whole()

    def takes_in(self, new: TaskRow) -> None:
        """It wrote the record itself, or read it."""
        known = self.rows.get(new.id)
        if known is None or known.revision < new.revision:
            self.rows[new.id] = new
            self.feeds.changed(known, new)

    def watches(self, new: TaskRow) -> None:
        """The watch of the bucket brought the record."""
        self.takes_in(new)
        self.feeds.seen(new.revision)

    def follow(self, stack: ExitStack, wanted: Wanted = EVERYTHING, since: int | None = None) -> Feed:
        return stack.enter_context(self.feeds.following(wanted, since=since, row_of=self.rows.get))


async def news(feed: Feed) -> News:
    found = await feed.news(idle_s=0)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(PENDING, PROCESSING, "task", id="1-into-it"),
        pytest.param(PROCESSING, PROCESSING, "task", id="1-within-it"),
        pytest.param(PROCESSING, DONE, "left", id="2-out-of-it"),
        pytest.param(None, DONE, "left", id="2-perhaps-out-of-it"),
        pytest.param(PENDING, DONE, None, id="3-past-it"),
    ],
)
def test_what_is_sent_of_a_task(before: TaskStatus | None, after: TaskStatus, expected: str | None) -> None:
    assert sent_of(Wanted(statuses=frozenset({PROCESSING})), before, after) == expected
    assert sent_of(Wanted(), before, after) == "task"


async def test_each_hears_of_what_they_follow() -> None:
    gateway = Gateway()
    with ExitStack() as stack:
        follow = {
            "everything": gateway.follow(stack),
            "alice": gateway.follow(stack, Wanted(caller="alice")),
            "phr00t": gateway.follow(stack, Wanted(models=frozenset({"phr00t"}))),
            "running": gateway.follow(stack, Wanted(statuses=frozenset({PROCESSING}))),
        }
        gateway.watches(row("a", 1))
        gateway.watches(row("b", 2, caller="bob", model="phr00t"))
        gateway.watches(row("b", 3, PROCESSING, caller="bob", model="phr00t"))
        gateway.watches(row("a", 4, DONE))
        heard = {name: (await news(feed)).changes for name, feed in follow.items()}
        assert heard == {
            "everything": (("b", "task"), ("a", "task")),
            "alice": (("a", "task"),),
            "phr00t": (("b", "task"),),
            "running": (("b", "task"),),
        }
        gateway.watches(row("b", 5, DONE, caller="bob", model="phr00t"))
        assert (await news(follow["running"])).changes == (("b", "left"),)
        gateway.feeds.gone(gateway.rows.pop("b"))
        assert (await news(follow["everything"])).changes == (("b", "gone"),)
        assert (await news(follow["running"])).changes == ()
        assert (await news(follow["alice"])).changes == ()
    gateway.watches(row("c", 6))  # no client follows any more
    assert gateway.feeds._feeds == {}


async def test_a_place_is_where_the_watch_is_and_not_what_the_gateway_wrote_itself() -> None:
    """Revision 3 is this gateway's; 2 is another's, and comes later. A client that went on from 3 would miss 2."""
    gateway = Gateway()
    with ExitStack() as stack:
        feed = gateway.follow(stack)
        gateway.watches(row("a", 1))
        gateway.takes_in(row("c", 3))
        first = await news(feed)
        assert (first.changes, first.upto) == ((("a", "task"), ("c", "task")), 1)
        gateway.watches(row("b", 2))
        gateway.watches(row("c", 3))
        second = await news(feed)
        assert (second.changes, second.upto) == ((("b", "task"),), 3)
        assert (await news(gateway.follow(stack, since=1))).changes == (("b", "task"), ("c", "task"))


async def test_whoever_was_sent_what_the_gateway_wrote_hears_at_once_when_the_watch_has_brought_it() -> None:
    """Or a client that comes back before the next event would be sent the end of a task a second time."""
    gateway = Gateway()
    with ExitStack() as stack:
        feed = gateway.follow(stack)
        gateway.watches(row("a", 1))
        assert (await news(feed)).caught_up
        gateway.takes_in(row("b", 3, DONE))
        late = gateway.follow(stack, since=1)
        for each in (feed, late):
            sent = await news(each)
            assert (sent.changes, sent.upto, sent.caught_up) == ((("b", "task"),), 1, False)
        gateway.watches(row("c", 2, caller="bob"))
        assert not (await news(feed)).caught_up
        gateway.watches(row("b", 3, DONE))
        for each in (feed, late):
            sent = await news(each)
            assert (sent.upto, sent.caught_up) == (3, True)
            assert not (await news(each)).caught_up
        assert (await news(gateway.follow(stack, since=3))).changes == ()
    assert not gateway.feeds._ahead


async def test_when_a_client_has_to_list_again() -> None:
    gateway = Gateway(most=3)
    with ExitStack() as stack:
        for number in range(1, 6):
            gateway.watches(row(f"task-{number}", number))
        assert (await news(gateway.follow(stack, since=2))).changes == (
            ("task-3", "task"),
            ("task-4", "task"),
            ("task-5", "task"),
        )
        late = await news(gateway.follow(stack, since=1))
        assert (late.reset, late.changes, late.upto) == ("too_old", (), 5)
        ahead = await news(gateway.follow(stack, since=6))
        assert (ahead.reset, ahead.changes) == ("unknown", ())

        feed = gateway.follow(stack)
        for number in range(UNSENT_MAX + 1):
            gateway.takes_in(row(f"many-{number}", 10 + number))
        much = await news(feed)
        assert (much.reset, much.changes) == ("too_much", ())
        gateway.takes_in(row("after", 5_000))
        assert await news(feed) == News((("after", "task"),), upto=5)


async def test_a_bucket_that_is_read_again_has_no_place_until_all_of_it_is_there() -> None:
    gateway = Gateway()
    with ExitStack() as stack:
        feed = gateway.follow(stack)
        for number in range(1, 4):
            gateway.watches(row(f"task-{number}", number))
        await news(feed)
        gateway.feeds.again()
        gateway.feeds.seen(1)
        gateway.takes_in(row("own", 9))
        while_reading = await news(feed)
        assert (while_reading.reset, while_reading.upto) == ("unknown", None)
        assert (await news(gateway.follow(stack, since=2))).reset == "unknown"
        gateway.feeds.seen(3)
        gateway.feeds.whole()
        # changes that were not sent while it was read are unknown now, except those that this gateway has written since
        assert (await news(gateway.follow(stack, since=2))).reset == "too_old"
        assert (await news(gateway.follow(stack, since=3))).changes == (("own", "task"),)


async def test_nothing_new_is_said_so_and_the_end_is() -> None:
    gateway = Gateway()
    with ExitStack() as stack:
        feed = gateway.follow(stack)
        assert await feed.news(idle_s=0) == News(upto=0)
        gateway.feeds.announce_moves(1)
        assert await news(feed) == News(moved=True, upto=0)
        gateway.feeds.announce_moves(1)
        assert await news(feed) == News(upto=0)
        gateway.feeds.close()
        assert await feed.news(idle_s=60) is None
        assert await gateway.follow(stack).news(idle_s=60) is None


def test_the_log_holds_the_newest_change_of_each_task() -> None:
    log = ChangeLog(most=2)
    for task_id, revision in (("a", 1), ("b", 2), ("a", 4), ("a", 3)):
        log.put(task_id, revision)
    assert (log.after(0), log.after(2), log.after(4)) == (["b", "a"], ["a"], [])
    log.put("c", 5)
    assert log.after(2) == ["a", "c"]
    with pytest.raises(TooOld):
        log.after(1)
    log.pop("a")
    log.pop("a")
    assert log.after(2) == ["c"]


STEPS = st.lists(st.sampled_from(["write here", "write there", "watch", "read", "cut", "other gateway"]), max_size=60)


@given(STEPS, st.data())
async def test_whatever_happens_a_client_ends_with_what_there_is(steps: list[str], data: st.DataObject) -> None:
    """Writes of two gateways and their watches run as they like; the client reads a batch, loses its connection after
    it or in it, and comes back to either gateway with the newest id that it has."""
    bucket: list[TaskRow] = []  # in the order of revisions
    gateways = [Gateway(most=4), Gateway(most=4)]
    watched = [0, 0]
    seen: dict[str, int] = {}
    stack, at, last_id = ExitStack(), 0, None
    feed = gateways[at].follow(stack)
    seen_reset = True

    def watch(which: int) -> None:
        if watched[which] < len(bucket):
            gateways[which].watches(bucket[watched[which]])
            watched[which] += 1

    async def read(upto_the_end: bool) -> None:
        nonlocal last_id, seen_reset
        found = await news(feed)
        if found.reset is not None:
            seen_reset = True
        for task_id, _ in found.changes[: None if upto_the_end else 1]:
            seen[task_id] = max(seen.get(task_id, 0), gateways[at].rows[task_id].revision)
        if upto_the_end or len(found.changes) <= 1:
            last_id = found.upto
        if seen_reset:  # it lists
            seen.update({task_id: each.revision for task_id, each in gateways[at].rows.items()})
            seen_reset = False

    await read(True)
    for step in steps:
        if step.startswith("write"):
            which = 0 if step == "write here" else 1
            new = row(data.draw(st.sampled_from("abcdef")), len(bucket) + 1)
            bucket.append(new)
            gateways[which].takes_in(new)
        elif step == "watch":
            watch(data.draw(st.integers(0, 1)))
        elif step == "read":
            await read(True)
        else:
            await read(data.draw(st.booleans()))
            stack.close()
            at = 1 - at if step == "other gateway" else at
            feed = gateways[at].follow(stack, since=last_id)
    while min(watched) < len(bucket):
        watch(0)
        watch(1)
    await read(True)
    stack.close()
    assert seen == {task_id: each.revision for task_id, each in gateways[at].rows.items()}
