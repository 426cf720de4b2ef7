"""`python -m tests.bench`: measures, and writes the report."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import click
import msgspec
import uvloop
from msgspec import structs

from ops.nats.errors import TransportUnavailable
from ops.nats.server import NoNatsServer, find_nats_server
from ops.telemetry.logs import configure_logging
from tests.bench import accept, dispatch, growth, overhead, overload, poll, servers, swap
from tests.bench.load import LoadFailed
from tests.bench.machine import machine, system
from tests.bench.procs import Cores, NotStarted, apart, usable_cores
from tests.bench.report import is_plotted, judge_all, markdown, plot
from tests.bench.results import Part, Results
from tests.bench.rounds import CONNECTIONS
from tests.bench.stacks import contenders

# What `make bench` measures, and what `make bench-all` measures in addition.
QUICK: Final = ("accept", "poll", "dispatch")
LONG: Final = ("servers", "overhead", "swap", "overload", "growth")
PACKAGES: Final = (
    "litestar",
    "nats-py",
    "uvicorn",
    "granian",
    "uvloop",
    "httptools",
    "msgspec",
    "fastapi",
    "celery",
    "redis",
    "taskiq",
    "taskiq-nats",
)
# 2,000 clients wait at once, each with a connection.
FILES: Final = 8_192
# In a longer round, the first tasks would reach the limit of their wait in the queue.
SECONDS_MAX: Final = 8.0


async def measure(
    parts: tuple[str, ...], cores: Cores, *, rounds: int, seconds: float, tasks: int, say: Callable[[str], None]
) -> tuple[Part, ...]:
    """Measures each of *parts*, in the order of the report. Raises LoadFailed, NotStarted."""
    found: list[Part] = []
    every = contenders()
    if "accept" in parts:
        found.append(await accept.measure(every, cores, rounds=rounds, seconds=seconds, say=say))
    if "poll" in parts:
        found += await poll.measure(every, cores, rounds=rounds, seconds=seconds, say=say)
    if "dispatch" in parts:
        found.append(await dispatch.measure(every, cores, rounds=rounds, tasks=tasks, say=say))
    if "servers" in parts:
        found.append(await servers.measure(every, cores, rounds=rounds, seconds=seconds, say=say))
    if "overhead" in parts:
        found.append(await overhead.measure(cores, rounds=rounds, say=say))
    if "swap" in parts:
        found.append(await swap.measure(cores, rounds=rounds, say=say))
    if "overload" in parts:
        found += await overload.measure(every, cores, rounds=rounds, seconds=seconds, say=say)
    if "growth" in parts:
        found += await growth.measure(every, cores, rounds=rounds, seconds=seconds, tasks=tasks, say=say)
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return tuple(structs.replace(part, when=when) for part in found)


def facts(cores: Cores, *, rounds: int, seconds: float) -> dict[str, str]:
    """The machine, the versions and the settings of the measurement."""
    installed = {distribution.name.lower().replace("_", "-"): distribution.version for distribution in _installed()}
    versions = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
    brokers = [_version(str(find_nats_server())), *([_version("redis-server")] if shutil.which("redis-server") else [])]
    return {
        "machine": machine(),
        "system": system(),
        "packages": versions,
        "brokers": "; ".join(brokers),
        "cores": str(cores),
        "rounds": f"{rounds}, interleaved, in another order each time; {seconds:g} s for each figure, after a warm-up",
        "throughput": f"{CONNECTIONS} keep-alive connections, each of which asks again when it has its answer; one "
        "process of each service",
        "latency": "at half of the throughput of the same round, from the moment at which each request was due",
        "CPU": "user and system time of the service's processes; the last column of a table is what everything else on "
        "the machine took meanwhile, the kernel's part of the network included",
    }


def write(results: Results, folder: Path) -> None:
    """Writes the report, its plots, and the values of every round. Raises OSError.

    Each plot is an SVG, which is committed, and a PNG, which git ignores: the repository holds no binaries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    (folder / "README.md").write_text(markdown(results))
    for part in results.parts:
        if is_plotted(part):
            for kind in ("svg", "png"):
                plot(part, folder / f"{part.name}.{kind}")


@click.command(
    epilog="Examples:\n\n  make bench\n\n  python -m tests.bench accept --rounds 3 --out /tmp/bench\n\n"
    "  python -m tests.bench --again   (the report anew, from the values that it was made of)"
)
@click.argument("parts", nargs=-1, type=click.Choice([*QUICK, *LONG]))
@click.option("--all", "is_all", is_flag=True, help="Measure every part (make bench-all; up to 90 minutes).")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each is measured.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, SECONDS_MAX), default=4.0, show_default=True, help="For each figure."
)
@click.option("--tasks", type=click.IntRange(1), default=40, show_default=True, help="Dispatched in each round.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs/benchmarks"),
    show_default=True,
    help="The folder of the report.",
)
@click.option("--again", is_flag=True, help="Measure nothing: write the report from results.json in the folder.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a number that is asked for is not met.")
def command(
    parts: tuple[str, ...],
    is_all: bool,
    rounds: int,
    seconds: float,
    tasks: int,
    out: Path,
    again: bool,
    strict: bool,
) -> None:
    """Measure PARTS (accept, poll and dispatch when none is named) and write a report with verdicts and plots.

    Every contender is started on this machine, on loopback ports and in folders that are removed afterwards. Parts that
    are not measured stay in the report as they are. Where they were measured on another machine, or with other
    versions, the report says so.
    """
    try:
        if again:
            results = msgspec.json.decode((out / "results.json").read_bytes(), type=Results)
        else:
            chosen = (*QUICK, *LONG) if is_all else parts or QUICK
            results = _measured(chosen, rounds=rounds, seconds=seconds, tasks=tasks)
            if (out / "results.json").exists():
                results = msgspec.json.decode((out / "results.json").read_bytes(), type=Results).replaced_by(results)
        write(results, out)
    except ConnectionError as error:
        raise click.ClickException(f"a service under measurement: {error}; measure again") from error
    except OSError as error:
        raise click.ClickException(f"{error}; choose another folder with --out") from error
    except (LoadFailed, NotStarted, NoNatsServer, TransportUnavailable, msgspec.DecodeError) as error:
        raise click.ClickException(str(error)) from error
    verdicts = judge_all(results)
    for verdict in verdicts:
        measured = "-" if verdict.measured is None else f"{verdict.measured:.2f}{verdict.aim.unit}"
        click.echo(f"{verdict.outcome:>16}  {verdict.aim.what}: {measured}")
    click.echo(f"the report is {out / 'README.md'}")
    if strict and not all(verdict.is_met for verdict in verdicts):
        raise SystemExit(1)


def _measured(parts: tuple[str, ...], *, rounds: int, seconds: float, tasks: int) -> Results:
    configure_logging("bench", level="warning")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    cores = apart(usable_cores())
    click.echo(str(cores))
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores.rest)
    machine = facts(cores, rounds=rounds, seconds=seconds)
    running = measure(parts, cores, rounds=rounds, seconds=seconds, tasks=tasks, say=click.echo)
    return Results(facts=machine, parts=uvloop.run(running))


def _installed() -> list[metadata.Distribution]:
    return [distribution for distribution in metadata.distributions() if distribution.name]


def _version(program: str) -> str:
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return printed.partition(" sha=")[0]
