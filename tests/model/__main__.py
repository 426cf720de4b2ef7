"""`python -m tests.model`: searches the protocol for interleavings that break an invariant."""

import sys
import time
from collections import Counter
from itertools import count

import click
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.drive import drive
from tests.model.invariants import Violation
from tests.model.machine import Protocol
from tests.model.patches import simulated_product
from tests.model.world import World

EXAMPLES_A_ROUND = 100


@click.command(epilog="Examples:\n\n  python -m tests.model --seconds 120\n\n  python -m tests.model --seed 711")
@click.option("--seconds", default=120.0, show_default=True, help="Search for so long, half of it with hypothesis.")
@click.option("--first-seed", default=1_000, show_default=True, help="Where the search begins.")
@click.option("--seed", "one_seed", type=int, help="Run this seed only, and print its story.")
def command(seconds: float, first_seed: int, one_seed: int | None) -> None:
    """Search for interleavings of the protocol that break an invariant of design §4."""
    if one_seed is not None:
        sys.exit(describe(one_seed))
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    outcomes, steps, runs = Counter[str](), 0, 0
    with simulated_product():
        for number in count(first_seed):
            if time.monotonic() > began_s + seconds / 2:
                break
            try:
                world = drive(number, with_webhooks=has_webhooks(number))
            except Violation as violation:
                raise click.ClickException(f"{violation}\nseed {number}; its story: --seed {number}") from violation
            steps, runs = steps + world.network.steps, runs + 1
            outcomes.update(str(call.outcome) for call in world.clients.calls)
        report("random", runs, steps, time.process_time() - began_cpu_s)
        click.echo("  answers " + ", ".join(f"{answer}: {times}" for answer, times in outcomes.most_common()))
        began_s, began_cpu_s, examples = time.monotonic(), time.process_time(), 0
        for number in count(first_seed):
            if time.monotonic() > began_s + seconds / 2:
                break
            run_state_machine_as_test(seed(number)(type("Seeded", (Protocol,), {})), settings=profile())
            examples += EXAMPLES_A_ROUND
        report("hypothesis", examples, Protocol.total_steps, time.process_time() - began_cpu_s)


def has_webhooks(number: int) -> bool:
    """Whether the requests in the run of seed *number* name a webhook."""
    return number % 3 == 0


def profile() -> settings:
    """One round of hypothesis."""
    return settings(
        deadline=None,
        max_examples=EXAMPLES_A_ROUND,
        stateful_step_count=40,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def report(how: str, runs: int, steps: int, took_s: float) -> None:
    click.echo(
        f"{how}: {runs} runs, {steps} interleaved effects in {took_s:.0f} s of computing: {steps / took_s:,.0f} a "
        "second; no invariant broken"
    )


def describe(number: int) -> int:
    """Prints what happens in the run of seed *number*."""
    worlds: list[World] = []
    with simulated_product():
        try:
            drive(number, is_tracing=True, with_webhooks=has_webhooks(number), on_world=worlds.append)
        except Violation as violation:
            broken: Violation | None = violation
        else:
            broken = None
    for line in worlds[0].tale.trace:
        click.echo(line)
    click.echo(f"broken: {broken}" if broken is not None else "no invariant broken")
    return 0 if broken is None else 1


if __name__ == "__main__":
    command()
