"""What a client would like: the header `Prefer` (RFC 7240). Pure.

A preference that is not understood is ignored, as the RFC wants it; where one comes twice, the first counts. `wait`
without a number, which clients of Replicate send, is the longest wait there is.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from werkzeug.http import parse_list_header, unquote_header_value

# The longest wait that a client may ask for, by `Prefer` or `?wait`.
MAX_WAIT_S: Final = 60.0
# The longest time after which a client may have a stream of many tasks end.
FEED_WAIT_MAX_S: Final = 3_600.0
_DIGITS_MAX: Final = 9  # of seconds: 30 years


class Preferences(Struct, frozen=True):
    """*wait_s*: answer when it is done, or after so many seconds; None without. *responds_async*: do not hold it."""

    wait_s: float | None = None
    responds_async: bool = False

    @classmethod
    def of(cls, lines: Iterable[str], *, wait_max_s: float) -> "Preferences":
        """Those of the *lines* of `Prefer`, each a list; nobody waits for longer than *wait_max_s*."""
        found: dict[str, str] = {}
        for line in lines:  # one by one: a quote that is open in one of them spoils no other
            for item in parse_list_header(line):
                name, sign, value = item.partition(";")[0].partition("=")  # behind a semicolon are its own parameters
                name, value = name.strip().lower(), unquote_header_value(value.strip())
                found.setdefault(name, f"{wait_max_s:.0f}" if name == "wait" and not sign else value)
        seconds = found.get("wait", "")
        waits = seconds.isascii() and seconds.isdigit() and len(seconds) <= _DIGITS_MAX
        return cls(wait_s=min(float(seconds), wait_max_s) if waits else None, responds_async="respond-async" in found)

    @property
    def applied(self) -> dict[str, str]:
        """The header that says which of them were followed; none where none was."""
        said = ["respond-async"] if self.responds_async else []
        if self.wait_s is not None:
            said.append(f"wait={self.wait_s:g}")
        return {"preference-applied": ", ".join(said)} if said else {}
