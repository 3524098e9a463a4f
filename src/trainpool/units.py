"""Where every shard's next unit of work stands: an index of the leases, each question answered without a search."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from trainpool.events import WorkerId
from trainpool.memory import Lease, Ledger
from trainpool.messages import ShardId
from trainpool.strategies.protocol import ShardPlan

__all__ = ["Unit", "Units"]

RANK = (1 << 32) - 1
"""The 32 bits of a rank."""


@dataclass(slots=True, eq=False)
class Unit:
    """A shard's next unit of work: the samples after those that its ledger counts."""

    part: ShardPlan
    ledger: Ledger
    rank: int
    """Its place among shards that are equally far, from 0: no two have the same."""
    seed: int
    """Of the shard's batch order and noise."""
    queued: int | None = None
    """The merged steps with which it went into the queue, while it is there or parked."""
    leases: tuple[Lease, ...] = ()
    """Of this unit, not overdue."""


class Units:
    """Open units, the least trained shard's first; leases by unit and by worker.

    All of it follows from the leases and the ledger, so it is never saved.
    """

    def __init__(self, units: Iterable[Unit], leases: Mapping[int, Lease]) -> None:
        """Where all stands; `units` come by their rank, `leases` by the task's number."""
        self.units = {unit.part.id: unit for unit in units}
        self.ranked = [*self.units.values()]
        self.queue: list[int] = []
        """A heap of the open ones' ranks, and above their 32 bits the part of the shard's steps that is done: a number
        each, since comparing pairs is what would take most of the time."""
        self.parked: list[Unit] = []
        """Open, but not wanted in this version:"""
        self.version = -1
        self.live: dict[Unit, None] = {}
        """Those that have leases, the longest first."""
        self.held: dict[WorkerId, tuple[Lease, ...]] = {}
        self.soonest = inf
        """No lease is overdue before this."""
        for lease in leases.values():
            unit = self.units[lease.task.shard]
            self.add(unit, lease, live=lease.task.offset == unit.ledger.samples and not lease.overdue)
        for unit in self.units.values():
            self.open(unit)

    def open(self, unit: Unit) -> None:
        """Queue a unit, unless it is queued, leased or has nothing left."""
        steps, whole = unit.ledger.steps, unit.part.steps
        if steps < whole and unit.queued is None and not unit.leases:
            unit.queued = steps
            heappush(self.queue, (steps << 32) // whole << 32 | unit.rank)

    def take(self, count: int, wanted: Collection[ShardId], version: int) -> list[Unit]:
        """At most `count` wanted open units, the least trained shard's first, no longer queued."""
        if self.parked and version != self.version:
            parked, self.parked = self.parked, []
            for unit in parked:
                unit.queued = None
                self.open(unit)
        queue = self.queue
        taken: list[Unit] = []
        while queue and len(taken) < count:
            unit = self.ranked[heappop(queue) & RANK]
            if unit.part.id not in wanted:
                self.version = version
                self.parked.append(unit)
                continue
            steps, unit.queued = unit.queued, None
            if steps == unit.ledger.steps:
                taken.append(unit)
            else:
                self.open(unit)  # an overdue answer came, and the shard is further than it was
        return taken

    def add(self, unit: Unit, lease: Lease, *, live: bool = True) -> None:
        """A unit was leased."""
        one = (lease,)
        self.held[lease.worker] = self.held.get(lease.worker, ()) + one
        if live:
            unit.leases += one
            self.live[unit] = None
            if lease.deadline < self.soonest:
                self.soonest = lease.deadline

    def drop(self, lease: Lease) -> None:
        """A lease ended without an update: its unit is open again, unless another lease of it lives."""
        self.held[lease.worker] = without(self.held[lease.worker], lease)
        self.retire(lease)

    def merge(self, unit: Unit, lease: Lease) -> None:
        """A unit is done: its shard's next one opens, and no other lease of the old one holds it."""
        self.held[lease.worker] = without(self.held[lease.worker], lease)
        if unit.leases:
            unit.leases = ()
            del self.live[unit]
        self.open(unit)

    def forget(self, worker: WorkerId) -> tuple[Lease, ...]:
        """A worker holds nothing any more: its leases ended without an update."""
        held = self.held.pop(worker, ())
        for lease in held:
            self.retire(lease)
        return held

    def retire(self, lease: Lease) -> None:
        """Let a lease no longer keep its unit from others, if it does."""
        unit = self.units[lease.task.shard]
        if lease in unit.leases:
            unit.leases = without(unit.leases, lease)
            if not unit.leases:
                del self.live[unit]
                self.open(unit)

    def expire(self, now: float) -> list[Lease]:
        """The leases that became overdue, whose units are open now: a look at all of them, of use from `soonest` on.

        A heap of deadlines would ask more of every lease, and nearly all end long before theirs.
        """
        leases = [lease for unit in self.live for lease in unit.leases]
        overdue = [lease for lease in leases if lease.deadline <= now]
        overdue.sort(key=lambda lease: (lease.deadline, lease.task.id))
        for lease in overdue:
            self.retire(lease)
        self.soonest = min((lease.deadline for lease in leases if lease.deadline > now), default=inf)
        return overdue


def without(leases: tuple[Lease, ...], lease: Lease) -> tuple[Lease, ...]:
    """All but one."""
    return () if len(leases) == 1 else tuple(other for other in leases if other is not lease)
