"""Which worker gets which unit: the open ones, and copies of those that another is late with."""

import heapq
import math
from collections.abc import Collection, Iterable
from itertools import islice
from typing import NamedTuple

from trainpool.events import WorkerId
from trainpool.memory import Lease, Memory
from trainpool.messages import ShardId
from trainpool.pace import Pace
from trainpool.units import Unit

__all__ = ["COPIED", "Copy", "choose", "copy", "late"]

COPIED = 64
"""Units still out, at most, when those that are late are looked for: the last of a round."""
LATE = 2.0
"""Times its expected duration after which a task is late."""
COPIERS = 8
"""Idle workers, the longest idle first, that look at a time; besides one for each late unit."""


class Copy(NamedTuple):
    """A worker that should do what another has."""

    worker: WorkerId
    unit: Unit
    late: bool
    """Whether the other one is late; otherwise it is only much slower."""


def choose(units: Collection[Unit], memory: Memory, asking: WorkerId | None) -> list[WorkerId | None]:
    """A worker for each unit: of the idle ones and the one that is about to ask. None where there is none for it."""
    if not units:
        return []
    doubts = memory.admission.doubts
    if asking is None and len(memory.idle) == 1 and not doubts:
        return [*memory.idle]
    # The fastest first: the least trained shards go to those who train them furthest.
    # Of very many idle ones, those who wait longest: a look at all, for one shard, would cost too much.
    candidates = [*islice(memory.idle, 64 + 4 * len(units))]
    slowness = memory.pace.step_seconds
    unknown = math.inf
    if asking is not None:  # who is new comes before it, or would never be measured
        candidates.append(asking)
        unknown = slowness(asking) or math.inf
    seconds = {worker: slowness(worker) or unknown for worker in candidates}
    workers = heapq.nsmallest(len(units) + 1, candidates, key=seconds.__getitem__)
    if not doubts:
        return [*workers[: len(units)]]
    # Whose answer is doubted does not get the same task again, while another is there to ask, or will be.
    chosen: list[WorkerId | None] = []
    for unit in units:
        doubt = doubts.get(unit.part.id)
        barred = None if doubt is None else doubt.worker
        worker = next((worker for worker in workers if worker != barred), None)
        if worker is None and not any(one.worker != barred and not one.overdue for one in memory.leases.values()):
            worker = barred if barred in workers else None
        if worker is not None:
            workers.remove(worker)
        chosen.append(worker)
    return chosen


def late(live: Iterable[Unit], pace: Pace, now: float) -> tuple[list[Lease], float]:
    """The leases that are late, and when the next one will be."""
    leases, alarm = [], math.inf
    for unit in live:
        for lease in unit.leases:
            expected = pace.expected(lease.worker, lease.task.steps)
            if expected is None:
                continue
            due = lease.since + LATE * expected
            if now >= due:
                leases.append(lease)
            else:
                alarm = min(alarm, due)
    return leases, alarm


def copy(live: Iterable[Unit], memory: Memory, wanted: Collection[ShardId], now: float) -> tuple[list[Copy], float]:
    """The leased units that idle workers should copy, and when the next one will be late.

    Those that another is late with, or that the idle one would have done much sooner. Chen et al. 2016, "Revisiting
    Distributed Synchronous SGD", has backup workers from the start; with leases the last units of a round suffice.
    """
    pace, alarm = memory.pace, math.inf
    found: list[tuple[int, float, Unit]] = []  # by the task's number; until when a copy must be here to be of use
    for unit in live:
        if len(unit.leases) == 1 and unit.part.id in wanted:
            lease = unit.leases[0]
            expected = pace.expected(lease.worker, lease.task.steps)
            if expected is None:
                continue
            due = lease.since + LATE * expected
            if now >= due:
                found.append((lease.task.id, math.inf, unit))
                continue
            alarm = min(alarm, due)
            if lease.since + expected > now:  # otherwise it should be here in a moment
                found.append((lease.task.id, lease.since + expected, unit))
    if not found:
        return [], alarm
    found.sort()
    late = sum(until == math.inf for _, until, _ in found)
    longest = max(until for _, until, _ in found)
    fewest = min(unit.leases[0].task.steps for _, _, unit in found)
    copies = []
    for worker in islice(memory.idle, COPIERS + late):
        least = pace.expected(worker, fewest)
        if least is None or now + 2 * least >= longest:
            continue  # nothing is slow enough: a look at each would find none
        for place, (_, until, unit) in enumerate(found):
            own = pace.expected(worker, unit.leases[0].task.steps)
            if own is not None and now + 2 * own < until:
                copies.append(Copy(worker, unit, until == math.inf))
                del found[place]
                break
    return copies, alarm
