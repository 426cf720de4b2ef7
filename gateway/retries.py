"""Trying a call again whose outcome is unknown."""

from functools import partial
from typing import Final

import stamina

from ops.nats_link import TransportUnavailable

RETRY_S: Final = 5.0
# Every call that is tried again here is recognised by the server as the same one (design §4, Accept 2).
until_answered = partial(
    stamina.retry_context,
    on=TransportUnavailable,
    attempts=None,
    timeout=RETRY_S,
    wait_initial=0.05,
    wait_max=1.0,
    wait_jitter=0.05,
)
