"""The coordinator: a pure state machine around a strategy. Events in, commands out; time is an argument.

A work unit is (shard, offset): the samples of a shard that come after those already trained. A lease gives a unit to
a worker. An overdue lease's unit is offered again, and the first answer wins: an answer counts only while its unit is
still the shard's next one, so no sample is lost and none counts twice, whoever answers, however late, however often.

    unit:  open ──lease──▶ leased ──answer admitted──▶ merged (the shard's next unit opens)
             ▲               │
             └── failed, left, rejected, overdue (an overdue lease can still answer)

When no unit is open, an idle worker may copy one that another is late with, which changes nothing of the above.

Every pool (processes, HTTP, virtual time) is a thin shell around `handle`. Same events, same commands, same bits.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from trainpool import rng, wire
from trainpool.admission import Admission
from trainpool.dispatch import COPIED, choose, copy, late
from trainpool.errors import MessageError
from trainpool.events import (
    SUPERSEDED,
    Accepted,
    Asked,
    Command,
    Event,
    Failed,
    Finished,
    Joined,
    Left,
    Rejected,
    Restarted,
    Returned,
    Send,
    Stopped,
    Tick,
    Wait,
    WorkerId,
)
from trainpool.memory import Base, Lease, Ledger, Memory
from trainpool.messages import Report, ShardId, Task, Update
from trainpool.pace import Pace
from trainpool.statistics import Statistics
from trainpool.strategies.protocol import Assignment, Plan, Rounds, Strategy
from trainpool.units import Unit, Units
from trainpool.vector import Layout, Vector

__all__ = ["Coordinator"]

ASKS = 1.0
"""Seconds that a unit is left for the worker that has just answered, when others wait for one."""


class Coordinator:
    """Leases, order, deadlines, admission and the ledger, around a strategy that knows none of them."""

    def __init__(
        self,
        strategy: Strategy[Any],
        plan: Plan,
        layout: Layout,
        vector: Vector,
        *,
        seed: int = 0,
        pace: Pace | None = None,
        admission: Admission | None = None,
        patience: int = 10,
    ) -> None:
        """Begin a run.

        `vector` holds the first parameters and buffers, in the layout's order. After `patience` failed or rejected
        answers in a row, more than there are workers, the run stops with the last reason, unless a worker that had none
        of them is at a task.
        """
        self.strategy, self.plan, self.layout, self.seed, self.patience = strategy, plan, layout, seed, patience
        self.rounds = strategy if isinstance(strategy, Rounds) and strategy.participation == "partial" else None
        """The strategy, where its rounds are partial."""
        self.bytes = vector.nbytes
        self.enter(strategy.init(vector[: layout.trainable], plan))
        # The order in which equally trained shards are offered: seeded, so that no shard is first by its name. What is
        # remembered of shards is made in this order, and mostly lies so in memory: with very many, caches notice.
        rank = rng.permutation(rng.key(rng.derive(seed, 0)), len(plan.shards))
        shards = [plan.shards[place] for place in np.argsort(rank).tolist()]
        seeds = rng.derive_each(seed, [number_of(shard.id) for shard in shards])
        self.order = [*zip(shards, seeds, strict=True)]
        self.memory = Memory(
            ledger={shard.id: Ledger() for shard in shards},
            statistics=Statistics(vector[layout.trainable :].copy()),
            admission=admission or Admission(),
            pace=pace or Pace(),
        )
        self.units = self.index()
        self.alarm = math.inf
        """When there may be something to do even if nothing happens before: a `Tick` then is soon enough."""

    def enter(self, state: Any) -> None:
        """Take the strategy's next state."""
        self.state = state
        self.wanted: Collection[ShardId] = self.strategy.wanted(state)
        self.complete = not self.wanted

    def index(self) -> Units:
        """Where every unit stands, from the leases and the ledger."""
        ledger = self.memory.ledger
        units = (Unit(part, ledger[part.id], rank, seed) for rank, (part, seed) in enumerate(self.order))
        return Units(units, self.memory.leases)

    def handle(
        self, event: Event, now: float, delta: Vector | None = None, buffers: Vector | None = None
    ) -> list[Command]:
        """One event at time `now` (seconds, never decreasing); `Returned` comes with its arrays."""
        memory = self.memory
        # The two that every task brings come first, by their type: there are ten times as many as of all others.
        if type(event) is Returned:
            assert delta is not None
            assert buffers is not None
            worker = event.worker
            if memory.silent or worker not in memory.workers:
                self.heard(worker)
            if memory.idle:
                memory.idle.pop(worker, None)
            commands = self.answer(worker, event.report, delta, buffers, now)
            return commands + self.offer(now, worker) if memory.idle or self.complete else commands
        if type(event) is Asked:
            worker = event.worker
            if self.units.held.get(worker):
                self.lose(worker)  # it holds nothing any more: a task that it forgot goes to someone else
            if memory.silent or worker not in memory.workers:
                self.heard(worker)
            memory.idle[worker] = None
            commands = self.offer(now)
            if worker in memory.idle and not memory.done:
                commands.append(Wait(worker))
            return commands
        match event:
            case Joined(worker):
                self.heard(worker)
                return []
            case Failed(worker, task, reason):
                self.heard(worker)
                memory.idle.pop(worker, None)
                return self.fail(worker, task, reason) + self.offer(now)
            case Left(worker):
                memory.workers.pop(worker, None)
                memory.idle.pop(worker, None)
                memory.silent.pop(worker, None)
                memory.pace.left(worker)
                self.lose(worker)
                return self.offer(now)
            case Tick():
                return self.offer(now)
            case Restarted():
                for worker in memory.workers:
                    self.lose(worker)
                    memory.pace.left(worker)
                memory.workers.clear()
                memory.idle.clear()
                memory.silent.clear()
                memory.misses.clear()
                memory.session, memory.done, memory.gathered = memory.session + 1, False, 0
                return []
        raise TypeError(f"not an event: {event!r}")

    def heard(self, worker: WorkerId) -> None:
        """A worker is there."""
        memory = self.memory
        if worker not in memory.workers:
            memory.workers[worker] = None
        elif worker in memory.silent:
            del memory.silent[worker]
        else:
            return
        memory.pace.joined(worker)

    def silence(self, worker: WorkerId) -> None:
        """A worker may have gone without a word: until it is heard of again, others' tasks do not follow its speed."""
        if worker in self.memory.workers:
            self.memory.silent[worker] = None
            self.memory.pace.left(worker)

    def answer(self, worker: WorkerId, report: Report, delta: Vector, buffers: Vector, now: float) -> list[Command]:
        """Merge an answer, or say why not."""
        memory = self.memory
        memory.bytes_up += delta.nbytes + buffers.nbytes
        lease = memory.leases.get(report.task)
        if lease is None or lease.worker != worker:
            return [Rejected(worker, report.task, "this worker has no such task (any more)")]
        task, shard, steps, samples = lease.task, lease.task.shard, report.steps, report.samples
        unit = self.units.units[shard]
        entry = unit.ledger
        staleness = self.state.version - task.version
        stopping: list[Command] = []
        superseded = task.offset != entry.samples or shard not in self.wanted
        stale = lease.limit is not None and staleness > lease.limit
        if superseded:
            reason: str | None = SUPERSEDED
        elif stale:
            reason = f"the model has moved on by {staleness} versions; {lease.limit} are allowed"
            memory.rejected += 1
        elif reason := memory.admission.judge(
            task,
            report,
            delta,
            buffers,
            self.layout,
            known=memory.statistics.buffers,
            worker=worker,
            alone=len(memory.workers) - len(memory.silent) == 1,
        ):
            memory.rejected += 1
            stopping = self.miss(worker, reason)
        base = self.drop(lease)
        # No worker computes longer than its task was away, but for its clock.
        elapsed = now - lease.since
        seconds = min(report.seconds, elapsed + memory.pace.grace)
        if reason is not None:
            self.units.drop(lease)
            entry.rejected += 1
            if (superseded or stale) and math.isfinite(report.seconds):
                # Else who is late because its speed is unknown, or no longer what it was, would be so again and again.
                memory.pace.record(worker, seconds, steps)
            return [Rejected(worker, task.id, reason), *stopping]
        memory.pace.record(worker, seconds, steps, elapsed)
        rate = task.recipe.rate(task.progress)
        update = Update(delta, steps, samples, report.loss, task.version, staleness, rate, base)
        version = self.state.version
        self.enter(self.strategy.merge(self.state, shard, update))
        memory.gathered = memory.gathered + 1 if self.state.version == version else 0
        if buffers.size:
            memory.statistics.merge(self.layout, task.version, shard, samples, buffers)
        entry.accepted += 1
        entry.steps += steps
        entry.samples += samples
        self.units.merge(unit, lease)
        if memory.misses:
            memory.misses.clear()
        memory.updates += 1
        memory.samples += samples
        memory.staleness += staleness
        memory.loss = report.loss if memory.updates == 1 else 0.9 * memory.loss + 0.1 * report.loss
        return [Accepted(worker, task, report, staleness)]

    def fail(self, worker: WorkerId, task: int, reason: str) -> list[Command]:
        """Take back a task that a worker could not do."""
        lease = self.memory.leases.get(task)
        if lease is None or lease.worker != worker:
            return []
        self.drop(lease)
        self.units.drop(lease)
        self.memory.ledger[lease.task.shard].failed += 1
        return self.miss(worker, reason)

    def lose(self, worker: WorkerId) -> None:
        """Take back what a worker that left was doing."""
        for lease in self.units.forget(worker):
            self.drop(lease)
            self.memory.ledger[lease.task.shard].lost += 1

    def drop(self, lease: Lease) -> Vector | None:
        """Forget a lease; the parameters that its task carried, where they were kept."""
        del self.memory.leases[lease.task.id]
        if not lease.rebased:
            return None
        base = self.memory.bases[lease.task.version]
        base.users -= 1
        if base.users == 0:
            del self.memory.bases[lease.task.version]
        return base.parameters

    def miss(self, worker: WorkerId, reason: str) -> list[Command]:
        """Count a failed or rejected answer: one bad worker is put up with, a run where nothing works is not.

        While a worker that has not missed since the last accepted answer is at a task, something may yet work.
        """
        memory = self.memory
        memory.misses[worker] = memory.misses.get(worker, 0) + 1
        count = sum(memory.misses.values())
        if count <= max(self.patience, 2 * len(memory.workers)):
            return []
        if any(lease.worker not in memory.misses for unit in self.units.live for lease in unit.leases):
            return []
        memory.done = True
        return [Stopped(f"{count} answers in a row were unusable; the last one because {reason}")]

    def offer(self, now: float, asking: WorkerId | None = None) -> list[Command]:
        """Give idle workers the open units; finish when there is none and none will come.

        `asking` has just answered and is about to ask: what suits it better than those who wait is left to it.
        """
        memory = self.memory
        if memory.done:
            return []
        if self.complete:
            memory.done, self.alarm = True, math.inf
            return [Finished()]
        units = self.units
        if now >= units.soonest:
            for lease in units.expire(now):
                self.give_up(lease)
        self.alarm = math.inf
        commands: list[Command] = []
        if memory.idle and not (self.rounds and self.waits(self.rounds, now)):
            count = len(memory.idle) + (asking is not None) + len(memory.admission.doubts)
            taken = units.take(count, self.wanted, self.state.version)
            for unit, worker in zip(taken, choose(taken, memory, asking), strict=True):
                if worker is None:
                    units.open(unit)
                elif worker == asking:
                    units.open(unit)
                    self.alarm = now + ASKS
                else:
                    commands.append(self.lease(worker, unit, now))
        if memory.idle and memory.pace.speculate and len(units.live) <= COPIED:
            commands += self.speculate(now)
        if units.soonest < self.alarm:
            self.alarm = units.soonest
        return commands

    def give_up(self, lease: Lease) -> None:
        """Wait no longer for an answer, which may still come."""
        lease.overdue = True
        self.memory.ledger[lease.task.shard].overdue += 1
        self.silence(lease.worker)

    def waits(self, rounds: Rounds, now: float) -> bool:
        """Whether a partial round waits for the rest of those whom it took on, and takes on nobody else until it ends.

        That is from its first answer on; it ends here, when nobody is left to wait for.
        """
        memory, units = self.memory, self.units
        if not memory.gathered:
            return False
        if len(units.live) <= COPIED:
            leases, self.alarm = late(units.live, memory.pace, now)
            for lease in leases:
                units.retire(lease)
                self.give_up(lease)
        if units.live:
            return True
        memory.gathered = 0
        self.enter(rounds.close(self.state))
        return False

    def speculate(self, now: float) -> list[Command]:
        """Let idle workers copy what others are late with."""
        copies, alarm = copy(self.units.live, self.memory, self.wanted, now)
        self.alarm = min(self.alarm, alarm)
        self.memory.copies += len(copies)
        commands: list[Command] = []
        for each in copies:
            lease = each.unit.leases[0]
            if each.late:
                self.silence(lease.worker)
            commands.append(self.lease(each.worker, each.unit, now, lease.task.steps))
        return commands

    def lease(self, worker: WorkerId, unit: Unit, now: float, steps: int | None = None) -> Send:
        """Make the task of a shard's next unit; a copy of one takes as many `steps` as the first."""
        memory, pace, part, entry = self.memory, self.memory.pace, unit.part, unit.ledger
        assignment: Assignment = self.strategy.assign(self.state, part.id)
        if steps is None:
            steps = assignment.steps
            if steps is None:
                steps = pace.steps(worker)
            elif assignment.flexible:
                steps = pace.fit(worker, steps)
        task = Task(
            id=(memory.session << 32) + memory.next_task,
            version=self.state.version,
            shard=part.id,
            recipe=self.plan.recipe,
            seed=unit.seed,
            offset=entry.samples,
            steps=min(steps, part.steps - entry.steps),
            batch=part.batch,
            progress=assignment.progress,
            pace=assignment.pace,
            partial=assignment.steps is None or assignment.flexible,
            anchored=assignment.anchor is not None,
            rho=assignment.rho,
        )
        lease = Lease(
            task,
            worker,
            now,
            deadline=now + pace.allowance(worker, task.steps),
            limit=pace.limit if assignment.limit is None else assignment.limit,
            rebased=assignment.rebased,
        )
        memory.next_task += 1
        memory.leases[task.id] = lease
        self.units.add(unit, lease)
        del memory.idle[worker]
        entry.leased += 1
        if lease.rebased:
            base = memory.bases.setdefault(task.version, Base(assignment.parameters))
            if base.users == 0:
                base.parameters = assignment.parameters.copy()
            base.users += 1
        anchor, buffers = assignment.anchor, memory.statistics.sent(self.state.version)
        memory.bytes_down += self.bytes + (0 if anchor is None else anchor.nbytes)
        return Send(worker, task, assignment.parameters, buffers, anchor)

    @property
    def samples(self) -> int:
        """Samples merged so far."""
        return self.memory.samples

    @property
    def parameters(self) -> Vector:
        """The current model: a view, `[trainable]`."""
        return self.state.parameters  # type: ignore[no-any-return]

    @property
    def buffers(self) -> Vector:
        """The current model's buffers: `[size - trainable]`."""
        return self.memory.statistics.buffers

    def save(self) -> tuple[Any, dict[str, Vector]]:
        """Everything that evolves, as plain values and arrays."""
        return wire.pack({"strategy": self.state, "memory": self.memory})

    def restore(self, tree: Any, tensors: Mapping[str, Vector]) -> None:
        """Continue from what `save` returned.

        Raises:
            MessageError: it was saved by another strategy or version.
        """
        if not isinstance(tree, dict) or {"strategy", "memory"} - tree.keys():
            raise MessageError("a saved state lacks the strategy's or the coordinator's part")
        self.enter(wire.unpack(type(self.state), tree["strategy"], tensors))
        self.memory = wire.unpack(Memory, tree["memory"], tensors)
        self.units = self.index()
        self.alarm = -math.inf  # when the next one is due follows from a look at what was restored


def number_of(shard: ShardId) -> int:
    """64 bits of a shard's name, whatever its form."""
    return int.from_bytes(hashlib.sha256(shard.encode()).digest()[:8], "little")
