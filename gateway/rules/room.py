"""Whether there is room for all requests of a batch. Pure."""

from collections.abc import Mapping, Sequence

from contracts.topology import DEGRADED


def has_room(streams: Sequence[str], free: Mapping[str, int]) -> bool:
    """Whether each of the requests, which routing sends to *streams*, finds a place; *free* is how many each stream
    has.

    1. A request for a lane takes a place of its lane's queue.
    2. Where that has none left, it goes to the degraded queue, as a single request does.
    3. A request for the degraded queue takes one of its places.
    """
    left = dict(free)
    for stream in streams:
        chosen = stream if left[stream] > 0 else DEGRADED  # 1, 3 or 2
        if left[chosen] <= 0:
            return False
        left[chosen] -= 1
    return True
