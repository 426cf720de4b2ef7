"""`python -m tests.promised` adds to `api.txt` what the API has now and has not promised yet. It removes nothing."""

from pathlib import Path
from typing import Final

from tests.kit.openapi import TINY
from tests.promised.surface import Surface, surface_of

FILE: Final = Path(__file__).with_name("api.txt")


def read() -> Surface:
    """The promised surface."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return dict(line.split(": ", 1) for line in lines)


def main() -> None:
    promised = read()
    added = {line: said for line, said in surface_of(TINY).items() if line not in promised}
    FILE.write_text("".join(f"{line}: {said}\n" for line, said in sorted((promised | added).items())))
    print(f"{len(added)} promises are new, of {len(promised) + len(added)}")


if __name__ == "__main__":
    main()
