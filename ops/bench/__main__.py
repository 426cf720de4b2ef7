"""`python -m ops.bench`."""

from ops.bench.command import command

if __name__ == "__main__":
    command(prog_name="python -m ops.bench")
