"""What a client would like: the header `Prefer` (RFC 7240). Pure.

A preference that is not understood is ignored, as the RFC requires. If one comes twice, the first counts. `wait`
without a number, which clients of Replicate send, means the longest wait.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from werkzeug.http import parse_list_header, unquote_header_value

# The longest wait that a client may ask for, by `Prefer` or `?wait`.
MAX_WAIT_S: Final = 60.0
# The longest `wait` that a client may give for a stream of many tasks.
FEED_WAIT_MAX_S: Final = 3_600.0
_DIGITS_MAX: Final = 9  # of seconds: 30 years


class Preferences(Struct, frozen=True):
    """*wait_s*: answer when the task has ended, or after so many seconds; None without `wait`. *responds_async*: do not
    hold the request."""

    wait_s: float | None = None
    responds_async: bool = False

    @classmethod
    def of(cls, lines: Iterable[str], *, wait_max_s: float) -> "Preferences":
        """The preferences in the *lines* of `Prefer`, each a list. A longer wait than *wait_max_s* becomes
        *wait_max_s*."""
        found: dict[str, str] = {}
        for line in lines:  # one by one: an open quote in one of them spoils no other
            for item in parse_list_header(line):
                name, sign, value = item.partition(";")[0].partition("=")  # its own parameters follow a semicolon
                name, value = name.strip().lower(), unquote_header_value(value.strip())
                found.setdefault(name, f"{wait_max_s:.0f}" if name == "wait" and not sign else value)
        seconds = found.get("wait", "")
        waits = seconds.isascii() and seconds.isdigit() and len(seconds) <= _DIGITS_MAX
        return cls(wait_s=min(float(seconds), wait_max_s) if waits else None, responds_async="respond-async" in found)

    @property
    def applied(self) -> dict[str, str]:
        """The header that names the preferences that the gateway followed; empty if it followed none."""
        said = ["respond-async"] if self.responds_async else []
        if self.wait_s is not None:
            said.append(f"wait={self.wait_s:g}")
        return {"preference-applied": ", ".join(said)} if said else {}
