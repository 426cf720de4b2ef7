"""Which delivery is sent next. Pure: the clock is an argument.

A slow receiver takes up only its own places, and a caller with many slow receivers takes no place of another caller.
"""

import heapq
from collections import Counter, OrderedDict, deque
from datetime import datetime
from typing import Final

from msgspec import Struct

from contracts.urls import BadUrl, parse_url
from contracts.webhooks import WebhookDelivery

PER_RECEIVER: Final = 4
PER_CALLER: Final = 16


def receiver_of(delivery: WebhookDelivery) -> str:
    """The receiver whose places *delivery* takes. An endpoint has places of its own, so that a slow one does not
    delay others of its host. The addresses that a caller's requests name, which may be any number, share those of
    their host."""
    try:
        authority = parse_url(delivery.url).authority
    except BadUrl:
        authority = ""
    return f"{delivery.endpoint} {authority}"


class _Entry(Struct, frozen=True):
    caller: str
    receiver: str
    at: datetime


class Lineup:
    """What is to be sent, and what is being sent. Callers take turns, and so do the receivers of each."""

    def __init__(self, *, per_receiver: int = PER_RECEIVER, per_caller: int = PER_CALLER) -> None:
        self._per_receiver, self._per_caller = per_receiver, per_caller
        self._entries: dict[str, _Entry] = {}
        self._later: list[tuple[datetime, str]] = []
        self._due: OrderedDict[str, OrderedDict[str, deque[str]]] = OrderedDict()
        self._sending: dict[str, tuple[str, str]] = {}
        self._of_caller: Counter[str] = Counter()
        self._of_receiver: Counter[tuple[str, str]] = Counter()

    def put(self, delivery: str, *, caller: str, receiver: str, at: datetime) -> None:
        """*delivery* is to be sent *at* that moment, which replaces any moment set before."""
        entry = _Entry(caller, receiver, at)
        if self._entries.get(delivery) != entry:
            self._entries[delivery] = entry
            heapq.heappush(self._later, (at, delivery))

    def drop(self, delivery: str) -> None:
        """*delivery* is not to be sent any more; it need not be in line."""
        self._entries.pop(delivery, None)

    def take(self, now: datetime) -> str | None:
        """The next delivery that is due and has a place, which it keeps until `over`; None if there is none."""
        self._let_in(now)
        for caller in tuple(self._due):
            if self._of_caller[caller] >= self._per_caller:
                continue
            found = self._of(caller, now)
            if found is not None:
                if caller in self._due:
                    self._due.move_to_end(caller)
                return found
        return None

    def over(self, delivery: str) -> None:
        """The attempt of *delivery* has ended, and its place is free."""
        caller, receiver = self._sending.pop(delivery)
        self._of_caller -= Counter([caller])
        self._of_receiver -= Counter([(caller, receiver)])
        entry = self._entries.get(delivery)
        if entry is not None:  # it was put in line again meanwhile
            heapq.heappush(self._later, (entry.at, delivery))

    def next_at(self) -> datetime | None:
        """When the next delivery will be due; None without any. One that is due, and waits for a place, does not
        count."""
        while self._later:
            at, delivery = self._later[0]
            entry = self._entries.get(delivery)
            if entry is not None and entry.at == at:
                return at
            heapq.heappop(self._later)
        return None

    @property
    def sending(self) -> int:
        """How many attempts run."""
        return len(self._sending)

    def _let_in(self, now: datetime) -> None:
        while self._later and self._later[0][0] <= now:
            at, delivery = heapq.heappop(self._later)
            entry = self._entries.get(delivery)
            if entry is not None and entry.at == at:
                receivers = self._due.setdefault(entry.caller, OrderedDict())
                receivers.setdefault(entry.receiver, deque()).append(delivery)

    def _of(self, caller: str, now: datetime) -> str | None:
        receivers = self._due[caller]
        for receiver in tuple(receivers):
            if self._of_receiver[caller, receiver] >= self._per_receiver:
                continue
            line = receivers[receiver]
            found = self._first(line, caller, receiver, now)
            if line:
                receivers.move_to_end(receiver)
            else:
                del receivers[receiver]
            if not receivers:
                del self._due[caller]
            if found is not None:
                return found
            if caller not in self._due:
                return None
        return None

    def _first(self, line: deque[str], caller: str, receiver: str, now: datetime) -> str | None:
        while line:
            delivery = line.popleft()
            entry = self._entries.get(delivery)
            if entry is None or entry.at > now or delivery in self._sending:
                continue  # dropped, put off, or on its way already
            del self._entries[delivery]
            self._sending[delivery] = (caller, receiver)
            self._of_caller[caller] += 1
            self._of_receiver[caller, receiver] += 1
            return delivery
        return None
