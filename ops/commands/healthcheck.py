"""`python -m ops.commands.healthcheck URL [PATTERN]`: the health of a container, whose image has no curl.

Exits with 0 when URL answers 200 and, where a PATTERN is given, a whole line of the answer matches it; otherwise with 1
and a line that says why.
"""

import re
import sys
import urllib.request
from typing import Final

ANSWERS_WITHIN_S: Final = 4.0


def complaint(url: str, pattern: str | None = None) -> str | None:
    """What is wrong with what *url* (http) answers; None if nothing is."""
    try:
        # without a proxy of the environment: the URL is in this container
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ANSWERS_WITHIN_S) as response:
            text = response.read().decode(errors="replace")
    except OSError as error:  # refused, too slow, or an answer that is no success
        return f"{url}: {error}"
    if pattern is not None and not any(re.fullmatch(pattern, line) for line in text.splitlines()):
        return f"{url}: no line of the answer is {pattern}"
    return None


def main() -> None:
    _, url, *pattern = sys.argv
    sys.exit(complaint(url, *pattern))


if __name__ == "__main__":
    main()
