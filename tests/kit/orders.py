"""Orders of a queue for one card, with which `make order` compares the product's own."""

from collections.abc import Callable, Iterable, Sequence

from contracts.order import Choice, Costs, OnCard, Waiting
from ops.simulation import ChooseNext, first_in_first_out


def fixed_slice(slice_s: float) -> ChooseNext:
    """Serves the loaded model for at most *slice_s* while a task for the other one waits, then the other one."""

    def order(waiting: Sequence[Waiting], loaded: OnCard | None, costs: Costs, now_s: float) -> Waiting:
        here, others = _parted(waiting, loaded)
        if loaded is not None and here and (not others or now_s < loaded.since_s + slice_s):
            return here[0]
        return others[0]

    return order


def llama_swap(waiting: Sequence[Waiting], loaded: OnCard | None, costs: Costs, now_s: float) -> Waiting:
    """ABCABC becomes AABBCC: a request for the loaded model starts at once, whatever else waits. Only when there is no
    such request, the model of the oldest other one is loaded (mostlygeek/llama-swap,
    `internal/router/scheduler/fifo.go`)."""
    here, others = _parted(waiting, loaded)
    return (here or others)[0]


def swarm_ui(waiting: Sequence[Waiting], loaded: OnCard | None, costs: Costs, now_s: float) -> Waiting:
    """The oldest request, if its model is loaded; else one for the model with the largest score: ten times the count of
    its requests plus the seconds that its first one has waited (mcmonkeyprojects/SwarmUI,
    `src/Backends/BackendHandler.cs`)."""
    if loaded is not None and waiting[0].model == loaded.model:
        return waiting[0]
    models = dict.fromkeys(task.model for task in waiting)

    def pressure(model: str) -> float:
        tasks = [task for task in waiting if task.model == model]
        return 10 * len(tasks) + now_s - tasks[0].queued_s

    highest = max(models, key=pressure)
    return next(task for task in waiting if task.model == highest)


def _parted(waiting: Sequence[Waiting], loaded: OnCard | None) -> tuple[list[Waiting], list[Waiting]]:
    here = [task for task in waiting if loaded is not None and task.model == loaded.model]
    return here, [task for task in waiting if task not in here]


# The variable of a worker that runs one of these orders: its name in `named`, and the seconds of the slice.
ORDER_VARIABLE = "WARMLANE_TEST_ORDER"


def named(seconds_of_slice: float = 30) -> dict[str, ChooseNext]:
    """The orders that are not the product's own, by name. The fixed slice is *seconds_of_slice* long."""
    return {
        "fifo": first_in_first_out,
        "slice": fixed_slice(seconds_of_slice),
        "llama-swap": llama_swap,
        "SwarmUI": swarm_ui,
    }


def in_the_product(order: ChooseNext) -> Callable[..., Choice | None]:
    """*order* in the place of `contracts.order.choose`."""

    def choose_by(
        waiting: Iterable[Waiting], *, loaded: OnCard | None, costs: Costs, now_s: float, **_: object
    ) -> Choice | None:
        able = sorted((task for task in waiting if now_s < task.deadline_s), key=lambda task: task.queued_s)
        return Choice(order(able, loaded, costs, now_s), (0,)) if able else None

    return choose_by
