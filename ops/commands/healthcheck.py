"""`python -m ops.commands.healthcheck URL`: the health of a container, whose image has no curl.

Exits with 0 when URL answers 200; otherwise with 1 and a line that says why.
"""

import sys
import urllib.error
import urllib.request
from typing import Final

ANSWERS_WITHIN_S: Final = 4.0
_SHOWN_BYTES: Final = 1_000


def complaint(url: str) -> str | None:
    """What is wrong with the answer of *url* (http); None if nothing is."""
    try:
        # without a proxy from the environment: the URL is in this container
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ANSWERS_WITHIN_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: {error}: {error.read(_SHOWN_BYTES).decode(errors='replace')}"
    except OSError as error:  # refused, or too slow
        return f"{url}: {error}"


def main() -> None:
    _, url = sys.argv
    sys.exit(complaint(url))


if __name__ == "__main__":
    main()
