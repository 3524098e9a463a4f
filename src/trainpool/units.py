"""Where every shard's next unit of work stands: an index of the leases, each question answered without a search."""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from trainpool.events import WorkerId
from trainpool.memory import Lease, Ledger
from trainpool.messages import ShardId
from trainpool.strategies.protocol import ShardPlan

__all__ = ["Unit", "Units"]

RANKS = 2**32
"""More than there are shards."""


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
    leases: list[Lease] = field(default_factory=list)
    """Of this unit, not overdue."""


class Units:
    """Open units, the least trained shard's first; leases by unit, by worker and by deadline.

    All of it follows from the leases and the ledger, so it is never saved.
    """

    def __init__(self, units: Iterable[Unit], leases: Mapping[int, Lease]) -> None:
        """Where all stands. `leases` by the task's number are the coordinator's own, which it goes on to change."""
        self.units = {unit.part.id: unit for unit in units}
        self.ranked = sorted(self.units.values(), key=lambda unit: unit.rank)
        self.leases = leases
        self.queue: list[int] = []
        """A heap of the open ones' ranks below `RANKS`, and above it the part of the shard's steps that is done: one
        number each, since comparing pairs is what would take most of the time."""
        self.parked: list[Unit] = []
        """Open, but not wanted in this version."""
        self.version = -1
        self.live: dict[Unit, None] = {}
        """Those that have leases, the longest first."""
        self.held: dict[WorkerId, list[Lease]] = {}
        self.deadlines: list[tuple[float, int]] = []
        """With the task's number; of leases that ended, until there are too many."""
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
            heapq.heappush(self.queue, steps * RANKS // whole * RANKS + unit.rank)

    def take(self, count: int, wanted: Collection[ShardId], version: int) -> list[Unit]:
        """At most `count` wanted open units, the least trained shard's first, no longer queued."""
        if version != self.version:
            self.version = version
            parked, self.parked = self.parked, []
            for unit in parked:
                unit.queued = None
                self.open(unit)
        queue = self.queue
        taken: list[Unit] = []
        while queue and len(taken) < count:
            unit = self.ranked[heapq.heappop(queue) % RANKS]
            if unit.part.id not in wanted:
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
        held, deadlines = self.held.get(lease.worker), self.deadlines
        if held is None:
            self.held[lease.worker] = [lease]
        else:
            held.append(lease)
        if live:
            unit.leases.append(lease)
            self.live[unit] = None
            heapq.heappush(deadlines, (lease.deadline, lease.task.id))
            if len(deadlines) > 1000 + 4 * len(self.leases):
                self.deadlines = [item for item in deadlines if item[1] in self.leases]
                heapq.heapify(self.deadlines)

    def drop(self, lease: Lease) -> None:
        """A lease ended without an update: its unit is open again, unless another lease of it lives."""
        self.held[lease.worker].remove(lease)
        self.retire(lease)

    def merge(self, unit: Unit, lease: Lease) -> None:
        """A unit is done: its shard's next one opens, and no other lease of the old one holds it."""
        self.held[lease.worker].remove(lease)
        if unit.leases:
            unit.leases.clear()
            del self.live[unit]
        self.open(unit)

    def forget(self, worker: WorkerId) -> list[Lease]:
        """A worker holds nothing any more: its leases ended without an update."""
        held = self.held.pop(worker, [])
        for lease in held:
            self.retire(lease)
        return held

    def retire(self, lease: Lease) -> bool:
        """Let a lease no longer keep its unit from others; whether it did."""
        unit = self.units[lease.task.shard]
        if lease not in unit.leases:
            return False
        unit.leases.remove(lease)
        if not unit.leases:
            del self.live[unit]
            self.open(unit)
        return True

    def expire(self, now: float) -> list[Lease]:
        """The leases that became overdue, whose units are open now."""
        deadlines, found = self.deadlines, []
        while deadlines and deadlines[0][0] < now:
            lease = self.leases.get(heapq.heappop(deadlines)[1])
            if lease is not None and self.retire(lease):
                found.append(lease)
        return found
