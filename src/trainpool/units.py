"""Where every shard's next unit of work stands: an index of the leases, each question answered without a search."""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from trainpool.events import WorkerId
from trainpool.messages import ShardId, Task

__all__ = ["Lease", "Units"]


@dataclass(slots=True, eq=False)
class Lease:
    """A task given to a worker."""

    task: Task
    worker: WorkerId
    since: float
    deadline: float
    """When its answer is overdue, and its unit offered again."""
    limit: int | None = None
    """The staleness above which its answer is refused."""
    rebased: bool = False
    """Whether its update needs the parameters that it carried."""
    overdue: bool = False


class Units:
    """Open units by priority; leases by unit, by worker and by deadline.

    All of it follows from the leases and the shards' priorities, so it is never saved.
    """

    def __init__(
        self,
        shards: Iterable[ShardId],
        priority: Callable[[ShardId], tuple[float, int] | None],
        leases: Mapping[int, Lease],
        offset: Callable[[ShardId], int],
    ) -> None:
        """Where all stands.

        `priority` is of a shard's next unit, the smallest first and no two alike, None where it has none left; `offset`
        is of that unit.
        """
        self.priority = priority
        self.queue: list[tuple[float, int, ShardId]] = []
        self.queued: set[ShardId] = set()
        self.changed: set[ShardId] = set()
        """Queued with a priority of before."""
        self.parked: list[ShardId] = []
        """Open, but not wanted in this version."""
        self.version = -1
        self.live: dict[ShardId, list[Lease]] = {}
        """Leases of the shard's next unit that are not overdue."""
        self.held: dict[WorkerId, list[Lease]] = {}
        self.deadlines: list[tuple[float, int]] = []
        """With the task's number; of leases that ended, until there are too many."""
        self.leases: dict[int, Lease] = {}
        """By the task's number."""
        for lease in leases.values():
            self.add(lease, live=lease.task.offset == offset(lease.task.shard) and not lease.overdue)
        for shard in shards:
            self.open(shard)

    def open(self, shard: ShardId) -> None:
        """Queue a shard's next unit, unless it is queued, leased or there is none."""
        if shard not in self.queued and shard not in self.live and (priority := self.priority(shard)) is not None:
            self.queued.add(shard)
            heapq.heappush(self.queue, (*priority, shard))

    def take(self, wanted: Collection[ShardId], version: int) -> ShardId | None:
        """The wanted open unit of the highest priority, no longer queued."""
        if version != self.version and self.parked:
            parked, self.parked = self.parked, []
            self.queued.difference_update(parked)
            for shard in parked:
                self.open(shard)
        self.version = version
        while self.queue:
            shard = heapq.heappop(self.queue)[2]
            if shard not in wanted:
                self.parked.append(shard)  # still marked as queued
                continue
            self.queued.discard(shard)
            if shard not in self.changed:
                return shard
            self.changed.discard(shard)
            self.open(shard)
        return None

    def add(self, lease: Lease, *, live: bool = True) -> None:
        """A unit was leased."""
        self.leases[lease.task.id] = lease
        self.held.setdefault(lease.worker, []).append(lease)
        if live:
            self.live.setdefault(lease.task.shard, []).append(lease)
            heapq.heappush(self.deadlines, (lease.deadline, lease.task.id))
            if len(self.deadlines) > 1000 + 4 * len(self.leases):
                self.deadlines = [item for item in self.deadlines if item[1] in self.leases]
                heapq.heapify(self.deadlines)

    def drop(self, lease: Lease) -> None:
        """A lease ended without an update: its unit is open again, unless another lease of it lives."""
        self.forget(lease)
        self.retire(lease)

    def merge(self, lease: Lease) -> None:
        """A unit is done: its shard's next one opens, and no other lease of the old one holds it."""
        self.forget(lease)
        shard = lease.task.shard
        self.live.pop(shard, None)
        if shard in self.queued:  # the answer was overdue
            self.changed.add(shard)
        self.open(shard)

    def forget(self, lease: Lease) -> None:
        """A lease ended."""
        del self.leases[lease.task.id]
        held = self.held[lease.worker]
        held.remove(lease)
        if not held:
            del self.held[lease.worker]

    def retire(self, lease: Lease) -> bool:
        """Let a lease no longer keep its unit from others; whether it did."""
        live = self.live.get(lease.task.shard, [])
        if lease not in live:
            return False
        live.remove(lease)
        if not live:
            del self.live[lease.task.shard]
            self.open(lease.task.shard)
        return True

    def expire(self, now: float) -> list[Lease]:
        """The leases that became overdue, whose units are open now."""
        found = []
        while self.deadlines and self.deadlines[0][0] < now:
            lease = self.leases.get(heapq.heappop(self.deadlines)[1])
            if lease is not None and self.retire(lease):
                found.append(lease)
        return found
