"""Has a host give back what it holds, by force if need be, and proves that it is gone (design §7, steps 2 to 4)."""

import asyncio
import contextlib
import time
from typing import Final

import structlog
from msgspec import Struct
from msgspec.structs import replace

from contracts.memory import SwapReceipt
from lane_worker.forking.host import Host
from lane_worker.forking.outcome import HostLost
from lane_worker.residence.baseline import Baseline
from lane_worker.residence.creep import READINGS, creep_bytes
from lane_worker.residence.memory import SlotMemory
from lane_worker.residence.release import MemorySample, Released, Unmeasurable, Verdict, judge
from ops.machine.readings import MB, Holder, MemoryProbe

AFTER_KILL_S: Final = 30.0
NO_PROBE: Final = "nothing here can measure memory, so the host is killed between models"
DIED: Final = "the host had ended before"

log = structlog.get_logger("residence")


class Given(Struct, frozen=True):
    """A release that is still to be proven; *is_escalated*: the host had to be killed, which nobody asked for."""

    receipt: SwapReceipt
    is_escalated: bool = False


class Proof(Struct, frozen=True):
    """The outcome of a release. *verdict* is None where nothing can measure it, and the host's end counts as proof.

    *creeps*: more stays after each release, so this was the host's last one. *holders* are the processes that use the
    slot now.
    """

    receipt: SwapReceipt
    verdict: Verdict | None = None
    is_escalated: bool = False
    creeps: bool = False
    holders: tuple[Holder, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether the next pipeline may be loaded."""
        return self.verdict is None or isinstance(self.verdict, Released)

    @property
    def outcome(self) -> str:
        """The label of the metric `releases`."""
        if not self.is_proven:
            return "unreadable" if isinstance(self.verdict, Unmeasurable) else "quarantined"
        return "escalated" if self.is_escalated else "renewed" if self.creeps else self.receipt.how


class Prover:
    """Releases and proves on one slot, against the baseline of its present host."""

    def __init__(self, host: Host, slot: str, memory: SlotMemory, *, after_kill_s: float) -> None:
        self.baseline = Baseline()
        self._host = host
        self._slot = slot
        self._memory = memory
        self._after_kill_s = after_kill_s
        self._stayed: list[int] = []  # in use after each release of this host

    def begin(self, baseline: Baseline) -> None:
        """There is a fresh host, with *baseline*."""
        self.baseline, self._stayed = baseline, []

    async def release(self, receipt: SwapReceipt, *, kill_because: str, is_used: bool) -> Given:
        """Step 2: the host gives back what it has, or is killed. *is_used*: it was asked to load before."""
        if self._host.pid is None:
            return Given(replace(receipt, how="killed", reason=DIED))
        if kill_because:
            return Given(await self._kill(receipt, kill_because))
        if not is_used:
            return Given(receipt)
        if self._memory.probe is None:
            return Given(await self._kill(receipt, NO_PROBE))
        return await self._unload(receipt)

    async def prove(self, given: Given, *, is_used: bool) -> Proof:
        """Steps 3 and 4: proof, if need be after a kill."""
        begun_s, probe = time.monotonic(), self._memory.probe
        if probe is None:
            return Proof(given.receipt, is_escalated=given.is_escalated)
        proof = Proof(given.receipt, Unmeasurable(), given.is_escalated)
        if self._host.pid is not None:
            proof = await self._by_living_host(proof, probe, is_used=is_used)
        if not proof.is_proven:
            own_base_bytes = None if self.baseline.own_base_bytes is None else 0
            bases = replace(self.baseline, base_bytes=self.baseline.floor_bytes, own_base_bytes=own_base_bytes)
            proof = await self._poll(proof, probe, bases, self._after_kill_s, is_used=is_used)
            if not proof.is_proven:
                after = f"{self._memory.words(proof.verdict)} {self._after_kill_s:g} s after the host had ended"
                proof = replace(proof, receipt=replace(proof.receipt, reason=f"{proof.receipt.reason}; {after}"))
        return replace(proof, receipt=replace(proof.receipt, verify_s=since(begun_s)))

    async def _by_living_host(self, proof: Proof, probe: MemoryProbe, *, is_used: bool) -> Proof:
        proof = await self._poll(proof, probe, self.baseline, probe.deadline_s, is_used=is_used)
        if not proof.is_proven:
            why = f"{self._memory.words(proof.verdict)} after {probe.deadline_s:g} s"
            return replace(proof, receipt=await self._kill(proof.receipt, why), is_escalated=True)
        if proof.receipt.proof == "no_pipeline":
            self.baseline = replace(self.baseline, base_bytes=proof.receipt.after_bytes)
        elif proof.receipt.how == "unloaded":
            return await self._end_what_creeps(proof, probe)
        return proof

    async def _poll(
        self, proof: Proof, probe: MemoryProbe, bases: Baseline, deadline_s: float, *, is_used: bool
    ) -> Proof:
        samples: list[MemorySample] = []
        while True:
            samples.append(await self._memory.sample(self._host.pid, bases))
            verdict = judge(
                samples,
                base_bytes=bases.base_bytes,
                own_base_bytes=bases.own_base_bytes,
                tolerance_bytes=probe.absolute_bytes,
                needed_bytes=proof.receipt.needed_bytes,
                no_pipeline=self._host.pid is None or not is_used,
            )
            if isinstance(verdict, Released) or samples[-1].at_s - samples[0].at_s >= deadline_s:
                break
            await asyncio.sleep(probe.poll_s)
        receipt = replace(
            proof.receipt,
            probe=probe.name,
            proof=verdict.proof if isinstance(verdict, Released) else "",
            base_bytes=bases.base_bytes,
            own_base_bytes=bases.own_base_bytes,
            tolerance_bytes=probe.absolute_bytes,
            after_bytes=samples[-1].used_bytes,
            own_bytes=samples[-1].own_bytes,
            free_bytes=samples[-1].free_bytes,
            samples=proof.receipt.samples + len(samples),
        )
        return replace(proof, receipt=receipt, verdict=verdict)

    async def _end_what_creeps(self, proof: Proof, probe: MemoryProbe) -> Proof:
        """Ends a host whose leftovers go on growing, now that it is empty, long before a release would fail because of
        them."""
        receipt = proof.receipt
        stayed_bytes = receipt.own_bytes if receipt.proof == "own_figure" else receipt.after_bytes
        self._stayed = [*self._stayed, stayed_bytes or 0][-READINGS:]
        grows_bytes = creep_bytes(self._stayed, tolerance_bytes=probe.absolute_bytes)
        if grows_bytes is None:
            return proof
        reason = f"each release left {grows_bytes // MB} MB more than the one before, so the host was renewed"
        log.warning("host_creeps", slot=self._slot, bytes_per_release=grows_bytes, stayed_bytes=self._stayed)
        with contextlib.suppress(HostLost):  # the start that follows finds out, and reports it
            await self._host.kill()
        return replace(proof, receipt=replace(receipt, reason=reason), creeps=True)

    async def _unload(self, receipt: SwapReceipt) -> Given:
        try:
            unloaded = await self._host.unload()
        except HostLost as error:
            return Given(replace(receipt, how="killed", reason=str(error)), is_escalated=True)
        log.info("unloaded", alive=unloaded.alive, allocated_bytes=unloaded.allocated_bytes)
        if not unloaded.alive:
            return Given(replace(receipt, how="unloaded"))
        reason = f"still alive after the release: {', '.join(unloaded.alive)}"
        return Given(await self._kill(replace(receipt, alive=unloaded.alive), reason), is_escalated=True)

    async def _kill(self, receipt: SwapReceipt, reason: str) -> SwapReceipt:
        # the probe, and the next start, find a host that survives SIGKILL
        with contextlib.suppress(HostLost):
            await self._host.kill()
        return replace(receipt, how="killed", reason=reason)


def since(begun_s: float) -> float:
    """The seconds from *begun_s* (monotonic), as receipts have them."""
    return round(time.monotonic() - begun_s, 4)
