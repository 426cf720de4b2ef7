"""The request that a connection is answering. Pipelined requests, which came before the answer, wait behind it."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class RequestInHand:
    """The request in hand; none before the first."""

    def __init__(self) -> None:
        self._cycle: RequestResponseCycle | None = None

    def take(self, cycle: RequestResponseCycle) -> None:
        """*cycle* is answered from now on."""
        self._cycle = cycle

    @property
    def is_answering(self) -> bool:
        """Whether its answer is still incomplete."""
        return self._cycle is not None and not self._cycle.response_complete

    @property
    def scope(self) -> dict[str, Any]:
        """The scope of the request that is being answered; empty where none is."""
        return dict(self._cycle.scope) if self._cycle is not None and self.is_answering else {}

    def may_be_refused(self, newest: RequestResponseCycle, *, is_in_head: bool) -> bool:
        """Whether a refusal now would be taken for the answer of the request that is refused.

        *newest* is the request that was begun last. *is_in_head*: the head of another one is not complete.
        """
        if self._cycle is None or self._cycle.response_complete:
            return self._cycle is None or is_in_head
        # it has to be the one in hand itself, in the middle of its body
        return self._cycle is newest and not (is_in_head or self._cycle.response_started)

    def disconnect(self) -> None:
        """Notifies the application that the client is gone.

        uvicorn notifies only the newest request, so a request that was sent behind an event stream would keep the
        stream open for ever.
        """
        if self._cycle is not None and not self._cycle.response_complete:
            self._cycle.disconnected = True
            self._cycle.message_event.set()
