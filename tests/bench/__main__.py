"""`python -m tests.bench`."""

from tests.bench.command import command

if __name__ == "__main__":
    command(prog_name="python -m tests.bench")
