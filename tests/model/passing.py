"""How time passes in the simulated system, and which of the possible operations happens next."""

from typing import TYPE_CHECKING, Final

from tests.model.invariants import Violation

if TYPE_CHECKING:
    from tests.model.world import World

IDLE_MAX_S: Final = 60.0


class Passing:
    """Lets one thing happen after the other: an operation, or the clock goes on."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def step(self, choice: int) -> None:
        """One thing happens; *choice* (0 to 255) says which. 0: the oldest operation happens, and is answered."""
        network = self._world.network
        possible = network.possible()
        if not possible or 176 <= choice < 208:
            self._next_moment((0.0, 0.02, 0.3, 2.0)[choice % 4] if possible else 0.0)
        else:
            operation = possible[choice % len(possible)]
            if choice < 144:
                self._world.tale.note_operation(operation, "happens")
                network.happen(operation)
            elif choice < 176:
                self._world.tale.note_operation(operation, "happens, its answer is on its way")
                network.happen_unheard(operation)
            elif choice < 224:
                self._world.tale.note_operation(operation, "happens, its answer is lost")
                network.happen(operation, answered=False)
            elif choice < 240:
                self._world.tale.note_operation(operation, "is lost")
                network.lose(operation)
            else:
                self._world.tale.note_operation(operation, "is given up, and may happen later")
                network.give_up(operation)
        self._world.check()

    def steps(self, choices: bytes) -> None:
        for choice in choices:
            self.step(choice)

    def _next_event_s(self) -> float | None:
        moments = [self._world.network.next_event_s(), *self._world.mishaps.ends_s.values()]
        return min((at_s for at_s in moments if at_s is not None), default=None)

    def _next_moment(self, late_s: float) -> None:
        at_s = self._next_event_s()
        if at_s is not None:
            # never so far that records expire: they are kept for a day at least
            self.pass_time(min(IDLE_MAX_S, max(0.0, at_s - self._world.now_s)) + late_s)

    def pass_time(self, seconds: float) -> None:
        """The clock goes on by *seconds*; what is under way stays so, or times out."""
        to_s = self._world.now_s + seconds
        while (at_s := self._next_event_s()) is not None and at_s <= to_s:
            self._arrive(at_s)
        self._arrive(to_s)

    def _arrive(self, at_s: float) -> None:
        self._world.network.pass_time(at_s)
        for name in [name for name, restart_s in self._world.mishaps.ends_s.items() if restart_s <= self._world.now_s]:
            self._world.tale.note(f"{name} starts again")
            self._world.mishaps.start(name)
        self._world.check()

    def live(self, seconds: float, *, sound_from_s: float | None = None) -> None:
        """*seconds* in which nothing goes wrong. From *sound_from_s* on, the bounds of a sound system hold."""
        to_s = self._world.now_s + seconds
        while True:
            self.settle()
            if sound_from_s is not None and self._world.now_s >= sound_from_s:
                self._world.ledger.check_sound(self._world.now_s, sound_from_s, self._world.idle_streams())
            at_s = self._next_event_s()
            if at_s is None or at_s > to_s:
                break
            self._arrive(at_s)
        self._arrive(to_s)
        self.settle()

    def settle(self) -> None:
        """All that is under way happens, in order, and is answered."""
        for _ in range(10_000):
            possible = self._world.network.possible()
            if not possible:
                self._world.check()
                return
            self._world.tale.note_operation(possible[0], "happens")
            self._world.network.happen(possible[0])
            self._world.check()
        raise Violation("1: there is no end to what happens at one moment")
