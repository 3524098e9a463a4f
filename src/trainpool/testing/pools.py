"""A pool without processes: tasks run one after another in this one, under a virtual clock."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from trainpool.events import Asked, Event, Failed, Joined, Left, Returned, Send
from trainpool.kernels.protocol import Arrays, Evaluation, Kernel, KernelError
from trainpool.messages import Report, ShardId
from trainpool.pools.protocol import Arrival, Conditions, Evaluated, Job, Message
from trainpool.vector import Vector

__all__ = ["Fault", "InProcessPool"]

Fault: TypeAlias = Literal["lose", "duplicate", "nan", "leave"]
"""What may happen to a task: its answer never comes (the worker asks again), comes twice, comes with a NaN, or the
worker leaves in the middle and another joins."""


@dataclass
class Work:
    """A task under way."""

    command: Send
    vector: Vector
    anchor: Vector | None


class InProcessPool:
    """Deterministic workers in this process.

    Tasks run when their virtual time has come, one after another, so real concurrency is absent but staleness is not:
    a task's parameters are those of when it was sent. Same arguments, same events, same bits.
    """

    virtual = False

    def __init__(
        self,
        kernel: Kernel,
        shards: Callable[[ShardId], Arrays],
        *,
        workers: int = 2,
        speeds: list[float] | None = None,
        test: Arrays | None = None,
        fault: Callable[[int], Fault | None] | None = None,
    ) -> None:
        """`speeds` are steps a second of each worker (1 by default); `fault` says what happens to the n-th task."""
        self.kernel, self.shards, self.test = kernel, shards, test
        self.workers = workers
        self.speeds = {f"w{i}": speed for i, speed in enumerate(speeds or [1.0] * workers)}
        self.fault = fault or (lambda _: None)
        self.time = 0.0
        self.agenda: list[tuple[float, int, Event | Work]] = []
        self.entries = self.tasks = 0
        self.evaluation: Evaluation | None = None

    def conditions(self, batch: int) -> Conditions:
        """The workers' speeds; see `Pool.conditions`."""
        return Conditions(tuple(self.speeds.values()))

    def open(self, job: Job | None = None) -> None:
        """Let all workers join at time 0."""
        for worker in self.speeds:
            self.plan(0.0, Joined(worker))
            self.plan(0.0, Asked(worker))

    def plan(self, time: float, what: Event | Work) -> None:
        """Put something on the agenda."""
        heapq.heappush(self.agenda, (time, self.entries, what))
        self.entries += 1

    def poll(self, timeout: float, alarm: float = math.inf) -> list[Message]:
        """The next thing on the agenda; the clock jumps there. An empty agenda lets `timeout` seconds pass."""
        if self.evaluation is not None:
            result, self.evaluation = self.evaluation, None
            return [Evaluated(result)]
        if not self.agenda:
            self.time += timeout
            return []
        self.time, _, what = heapq.heappop(self.agenda)
        return self.finish(what) if isinstance(what, Work) else [Arrival(what)]

    def send(self, command: Send) -> None:
        """Begin a task; see `Pool.send`."""
        vector = np.concatenate([command.parameters, command.buffers])
        anchor = None if command.anchor is None else command.anchor.copy()
        self.plan(self.time + command.task.steps / self.speeds[command.worker], Work(command, vector, anchor))

    def finish(self, work: Work) -> list[Message]:
        """Run a task whose time has come."""
        worker, task = work.command.worker, work.command.task
        self.tasks += 1
        fault = self.fault(self.tasks - 1)
        if fault == "lose":
            return [Arrival(Asked(worker))]
        if fault == "leave":
            return [Arrival(Left(worker)), Arrival(Joined(worker)), Arrival(Asked(worker))]
        out = np.empty_like(work.vector)
        try:
            report = self.kernel.run(task, work.vector, work.anchor, self.shards(task.shard), out)
        except KernelError as error:
            return [Arrival(Failed(worker, task.id, str(error))), Arrival(Asked(worker))]
        if fault == "nan":
            out[0] = np.nan
        report = Report(
            task=report.task,
            steps=report.steps,
            samples=report.samples,
            loss=report.loss,
            seconds=task.steps / self.speeds[worker],  # virtual, so that pace depends on no real clock
        )
        trainable = work.command.parameters.size
        answer = Arrival(Returned(worker, report), out[:trainable], out[trainable:])
        return [*([answer, answer] if fault == "duplicate" else [answer]), Arrival(Asked(worker))]

    def restart(self, worker: str) -> None:
        """Nothing: no worker hangs here."""

    def evaluate(self, vector: Vector) -> bool:
        """Evaluate at once; see `Pool.evaluate`."""
        if self.test is None:
            return False
        self.evaluation = self.kernel.evaluate(vector, self.test)
        return True

    def close(self) -> None:
        """Drop what is under way."""
        self.agenda.clear()

    def now(self) -> float:
        """The virtual time in seconds."""
        return self.time
