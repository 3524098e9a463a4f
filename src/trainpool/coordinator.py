"""The coordinator: a pure state machine around a strategy. Events in, commands out; time is an argument.

A work unit is (shard, offset): the samples of a shard that come after those already trained. A lease gives a unit to
a worker. An overdue lease's unit is offered again, and the first answer wins: an answer counts only while its unit is
still the shard's next one, so no sample is lost and none counts twice, whoever answers, however late, however often.

    unit:  open ──lease──▶ leased ──answer admitted──▶ merged (the shard's next unit opens)
             ▲               │
             └── failed, left, rejected, overdue (an overdue lease can still answer)

Every pool (processes, HTTP, virtual time) is a thin shell around `handle`. Same events, same commands, same bits.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainpool import rng, wire
from trainpool.admission import Admission
from trainpool.errors import MessageError
from trainpool.events import (
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
from trainpool.messages import Report, ShardId, Task, Update
from trainpool.pace import Pace
from trainpool.statistics import Statistics
from trainpool.strategies.protocol import Assignment, Plan, Strategy
from trainpool.vector import Layout, Vector

__all__ = ["Coordinator", "Lease", "Ledger", "Memory"]


@dataclass
class Ledger:
    """What became of one shard's work units. leased = accepted + rejected + failed + lost + those still out."""

    steps: int = 0
    """Merged steps."""
    samples: int = 0
    """Merged samples: the offset of the next unit."""
    leased: int = 0
    accepted: int = 0
    rejected: int = 0
    """Not admitted, or answered after another worker's answer to the same unit."""
    failed: int = 0
    """The worker said that it could not."""
    lost: int = 0
    """The worker left, or the coordinator restarted."""
    overdue: int = 0
    """Leases that passed their deadline; each also ends in one of the ways above."""


@dataclass
class Lease:
    """A task given to a worker."""

    task: Task
    worker: WorkerId
    since: float
    overdue: bool = False


@dataclass
class Memory:
    """Everything that evolves, beside the strategy's own state: it is saved and restored as a whole."""

    ledger: dict[ShardId, Ledger]
    statistics: Statistics
    admission: Admission
    pace: Pace
    leases: dict[int, Lease] = field(default_factory=dict)
    workers: dict[WorkerId, Literal["idle", "busy"]] = field(default_factory=dict)
    next_task: int = 0
    session: int = 0
    """How often the coordinator was restarted: part of every task's number, so that none is used twice."""
    misses: int = 0
    """Failed or rejected answers since the last accepted one."""
    rejected: int = 0
    loss: float = 0.0
    """A moving mean of the training loss."""
    staleness: int = 0
    """Sum over accepted updates."""
    updates: int = 0
    """Accepted updates."""
    bytes_down: int = 0
    """Of the arrays sent to workers."""
    bytes_up: int = 0
    """Of the arrays that workers returned."""
    done: bool = False


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
        answers in a row, more than there are workers, the run stops with the last reason.
        """
        self.strategy, self.plan, self.layout, self.seed, self.patience = strategy, plan, layout, seed, patience
        self.state = strategy.init(vector[: layout.trainable], plan)
        self.memory = Memory(
            ledger={shard.id: Ledger() for shard in plan.shards},
            statistics=Statistics(vector[layout.trainable :].copy()),
            admission=admission or Admission(),
            pace=pace or Pace(),
        )
        # The order in which equally trained shards are offered: seeded, so that no shard is first by its name.
        rank = rng.permutation(rng.key(rng.derive(seed, 0)), len(plan.shards))
        self.rank = {shard.id: int(place) for shard, place in zip(plan.shards, rank, strict=True)}
        self.seeds = {shard.id: rng.derive(seed, number_of(shard.id)) for shard in plan.shards}

    def handle(
        self, event: Event, now: float, delta: Vector | None = None, buffers: Vector | None = None
    ) -> list[Command]:
        """One event at time `now` (seconds, never decreasing); `Returned` comes with its arrays."""
        memory = self.memory
        match event:
            case Joined(worker):
                memory.workers.setdefault(worker, "busy")
                return []
            case Asked(worker):
                self.lose(worker)  # it holds nothing any more: a task that it forgot goes to someone else
                memory.workers[worker] = "idle"
                return self.offer(now)
            case Returned(worker, report):
                assert delta is not None
                assert buffers is not None
                memory.workers[worker] = "busy"
                return [*self.answer(worker, report, delta, buffers), *self.offer(now)]
            case Failed(worker, task, reason):
                memory.workers[worker] = "busy"
                return [*self.fail(worker, task, reason), *self.offer(now)]
            case Left(worker):
                memory.workers.pop(worker, None)
                memory.pace.forget(worker)
                self.lose(worker)
                return self.offer(now)
            case Tick():
                return self.offer(now)
            case Restarted():
                for worker in list(memory.workers):
                    self.lose(worker)
                    memory.pace.forget(worker)
                memory.workers.clear()
                memory.session, memory.misses, memory.done = memory.session + 1, 0, False
                return []

    def answer(self, worker: WorkerId, report: Report, delta: Vector, buffers: Vector) -> list[Command]:
        """Merge an answer, or say why not."""
        memory = self.memory
        memory.bytes_up += delta.nbytes + buffers.nbytes
        lease = memory.leases.get(report.task)
        if lease is None or lease.worker != worker:
            return [Rejected(worker, report.task, "this worker has no such task (any more)")]
        del memory.leases[report.task]
        task = lease.task
        entry = memory.ledger[task.shard]
        if task.offset != entry.samples or task.shard not in self.strategy.wanted(self.state):
            entry.rejected += 1
            return [Rejected(worker, task.id, "another worker answered first")]
        reason = memory.admission.judge(task, report, delta, buffers, self.layout)
        if reason:
            entry.rejected += 1
            memory.rejected += 1
            return [Rejected(worker, task.id, reason), *self.miss(reason)]
        memory.pace.record(worker, report.seconds, report.steps)
        staleness = self.state.version - task.version
        rate = task.recipe.rate(task.progress)
        update = Update(delta, report.steps, report.samples, report.loss, task.version, staleness, rate)
        self.state = self.strategy.merge(self.state, task.shard, update)
        memory.statistics.merge(self.layout, task.version, task.shard, report.samples, buffers)
        entry.accepted += 1
        entry.steps += report.steps
        entry.samples += report.samples
        memory.misses = 0
        memory.updates += 1
        memory.staleness += staleness
        memory.loss = report.loss if memory.updates == 1 else 0.9 * memory.loss + 0.1 * report.loss
        return [Accepted(worker, task, report, staleness)]

    def fail(self, worker: WorkerId, task: int, reason: str) -> list[Command]:
        """Take back a task that a worker could not do."""
        lease = self.memory.leases.get(task)
        if lease is None or lease.worker != worker:
            return []
        del self.memory.leases[task]
        self.memory.ledger[lease.task.shard].failed += 1
        return self.miss(reason)

    def lose(self, worker: WorkerId) -> None:
        """Take back what a worker that left was doing."""
        for task in [task for task, lease in self.memory.leases.items() if lease.worker == worker]:
            self.memory.ledger[self.memory.leases.pop(task).task.shard].lost += 1

    def miss(self, reason: str) -> list[Command]:
        """Count a failed or rejected answer: one bad worker is put up with, a run where nothing works is not."""
        self.memory.misses += 1
        if self.memory.misses <= max(self.patience, 2 * len(self.memory.workers)):
            return []
        self.memory.done = True
        return [Stopped(f"{self.memory.misses} answers in a row were unusable; the last one because {reason}")]

    def offer(self, now: float) -> list[Command]:
        """Give every idle worker an open unit; finish when there is none and none will come."""
        memory = self.memory
        if memory.done:
            return []
        wanted = self.strategy.wanted(self.state)
        if not wanted:
            memory.done = True
            return [Finished()]
        for lease in memory.leases.values():
            late = now - lease.since > memory.pace.allowance(lease.worker, lease.task.steps)
            if late and not lease.overdue:
                lease.overdue = True
                memory.ledger[lease.task.shard].overdue += 1
        held = {lease.task.shard for lease in memory.leases.values() if not lease.overdue}
        open_shards = [shard for shard in wanted if shard not in held]
        steps = {shard.id: shard.steps for shard in self.plan.shards}
        open_shards.sort(key=lambda shard: (memory.ledger[shard].steps / steps[shard], self.rank[shard]))
        idle = [worker for worker, status in memory.workers.items() if status == "idle"]
        return [self.lease(worker, open_shards.pop(0), now) if open_shards else Wait(worker) for worker in idle]

    def lease(self, worker: WorkerId, shard: ShardId, now: float) -> Send:
        """Make the task of a shard's next unit."""
        memory, part = self.memory, self.plan[shard]
        entry = memory.ledger[shard]
        assignment: Assignment = self.strategy.assign(self.state, shard)
        steps = min(assignment.steps or memory.pace.steps(worker), part.steps - entry.steps)
        task = Task(
            id=(memory.session << 32) + memory.next_task,
            version=self.state.version,
            shard=shard,
            recipe=self.plan.recipe,
            seed=self.seeds[shard],
            offset=entry.samples,
            steps=steps,
            batch=part.batch,
            progress=assignment.progress,
            pace=assignment.pace,
            anchored=assignment.anchor is not None,
            rho=assignment.rho,
        )
        memory.next_task += 1
        memory.leases[task.id] = Lease(task, worker, now)
        memory.workers[worker] = "busy"
        entry.leased += 1
        anchor, buffers = assignment.anchor, memory.statistics.sent(self.state.version)
        memory.bytes_down += assignment.parameters.nbytes + buffers.nbytes + (0 if anchor is None else anchor.nbytes)
        return Send(worker, task, assignment.parameters, buffers, anchor)

    @property
    def samples(self) -> int:
        """Samples merged so far."""
        return sum(entry.samples for entry in self.memory.ledger.values())

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
        self.state = wire.unpack(type(self.state), tree["strategy"], tensors)
        self.memory = wire.unpack(Memory, tree["memory"], tensors)


def number_of(shard: ShardId) -> int:
    """64 bits of a shard's name, whatever its form."""
    return int.from_bytes(hashlib.sha256(shard.encode()).digest()[:8], "little")
