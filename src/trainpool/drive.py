"""The loop between a coordinator and a pool: journal each event, handle it, carry out the commands."""

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from trainpool.coordinator import Coordinator
from trainpool.events import Accepted, Asked, Command, Event, Finished, Rejected, Send, Stopped, Tick
from trainpool.journal import Journal
from trainpool.kernels.protocol import Evaluation
from trainpool.pools.protocol import Arrival, Evaluated, Pool
from trainpool.vector import Vector

__all__ = ["Drive", "Moment", "Observer"]

SNAPSHOT_SECONDS = 30.0
LOOK_SECONDS = 5.0
DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Moment:
    """A run's numbers when a model was taken for evaluation."""

    seconds: float
    samples: int
    loss: float
    """A moving mean of the training loss over tasks."""
    staleness: float
    """Mean over the updates so far, in versions."""
    updates: int
    rejected: int
    bytes_down: int
    bytes_up: int
    report: dict[str, float]
    """The strategy's own numbers."""


class Observer(Protocol):
    """Follows a run: for metrics, for the screen."""

    def accepted(self, drive: "Drive", command: Accepted) -> None:
        """An update was merged."""

    def rejected(self, drive: "Drive", command: Rejected) -> None:
        """An answer was not merged."""

    def evaluated(self, drive: "Drive", result: Evaluation, moment: Moment) -> None:
        """The model of an earlier moment was evaluated."""

    def refresh(self, drive: "Drive") -> None:
        """Called a few times a second."""


@dataclass
class Drive:
    """One process's part of a run: from its start, or a resume, until it is finished, stopped or interrupted."""

    coordinator: Coordinator
    pool: Pool
    journal: Journal | None
    """None where nothing is to be kept."""
    observer: Observer
    evaluate_every: int
    """Samples between evaluations; 0 evaluates at the end alone, -1 never."""
    elapsed: float = 0.0
    """Seconds that the run took before this process."""
    interrupted: bool = False
    """Set (by a signal handler) to let running tasks end, save and return."""
    unsent: set[int] = field(default_factory=set)
    """Tasks that were leased after that: nobody does them."""
    finished: bool = False
    stopped: str = ""
    origin: float | None = None
    """The pool's clock when the first worker was ready: waiting for interpreters to start is not training."""
    mark: int = 0
    """Samples at the next evaluation."""
    evaluating: deque[Moment] = field(default_factory=deque)
    """Of the evaluations under way, the earliest first."""
    measured_at: int = -1
    """Samples at the last evaluation that ended."""
    buffers: Vector | None = None
    """Of the model that was evaluated last, where they were measured anew."""
    ended: float | None = None

    def now(self) -> float:
        """Seconds of training: on the pool's clock, continuing over resumes."""
        if self.ended is not None:
            return self.ended
        return self.elapsed if self.origin is None else self.elapsed + self.pool.now() - self.origin

    def vector(self) -> Vector:
        """A copy of the current model: `[size]`."""
        fresh = self.buffers if self.measured_at == self.coordinator.samples else None
        buffers = self.coordinator.buffers if fresh is None else fresh
        return np.concatenate([self.coordinator.parameters, buffers])

    def run(self) -> None:
        """Train. Afterwards one of `finished`, `stopped` and `interrupted` says how it ended."""
        saved = looked = refreshed = time.monotonic()
        drained: float | None = None
        self.mark = self.coordinator.samples + self.evaluate_every
        try:
            while not (self.finished or self.stopped):
                for message in self.pool.poll(0.25, self.alarm()):
                    if isinstance(message, Evaluated):
                        self.measured(message)
                    elif not (self.interrupted and isinstance(message.event, Asked)):
                        self.handle(message)
                if not self.pool.virtual and self.now() >= self.coordinator.alarm:
                    self.handle(Arrival(Tick()))
                clock = time.monotonic()
                if clock - looked > LOOK_SECONDS:
                    looked = clock
                    self.restart_silent()
                if clock - saved > SNAPSHOT_SECONDS:
                    saved = clock
                    self.snapshot()
                if clock - refreshed > 0.2:
                    refreshed = clock
                    self.observer.refresh(self)
                if self.interrupted:
                    drained = drained or clock
                    done = self.coordinator.memory.leases.keys() <= self.unsent
                    if done or self.pool.virtual or clock - drained > DRAIN_SECONDS:
                        break
            self.ended = self.now()
            self.snapshot()
            if self.finished and self.evaluate_every >= 0:
                self.evaluate_last()
        finally:
            self.observer.refresh(self)

    def alarm(self) -> float:
        """When the coordinator wants to be woken, on the pool's clock."""
        if self.origin is None:
            return math.inf
        alarm = self.coordinator.alarm
        when = alarm - self.elapsed + self.origin
        while self.elapsed + when - self.origin < alarm:  # rounding must not wake it too early
            when = math.nextafter(when, math.inf)
        return when

    def restart_silent(self) -> None:
        """Restart workers that have taken twice the time after which an answer is overdue."""
        for lease in self.coordinator.memory.leases.values():
            if lease.overdue and self.now() - lease.since > 2 * (lease.deadline - lease.since):
                self.pool.restart(lease.worker)

    def snapshot(self) -> None:
        """Save the coordinator, where there is a journal."""
        if self.journal is not None:
            self.journal.snapshot(self.coordinator)

    def handle(self, arrival: Arrival) -> None:
        """One event: on the disk first, then in the coordinator, then out to the workers."""
        event: Event = arrival.event
        if self.origin is None and isinstance(event, Asked):
            self.origin = self.pool.now()
        now = self.now()
        if self.journal is not None:
            self.journal.append(event, now, arrival.delta, arrival.buffers)
        for command in self.coordinator.handle(event, now, arrival.delta, arrival.buffers):
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        """One command of the coordinator."""
        match command:
            case Send():
                if self.interrupted:
                    self.unsent.add(command.task.id)
                else:
                    self.pool.send(command)
            case Accepted():
                self.observer.accepted(self, command)
                if self.evaluate_every > 0 and self.coordinator.samples >= self.mark:
                    self.evaluate()
            case Rejected():
                self.observer.rejected(self, command)
            case Finished():
                self.finished = True
            case Stopped(reason):
                self.stopped = reason

    def evaluate(self) -> None:
        """Begin an evaluation where the pool has room for one; merging goes on beside it."""
        if self.pool.evaluate(self.vector()):
            coordinator, memory = self.coordinator, self.coordinator.memory
            moment = Moment(
                seconds=self.now(),
                samples=coordinator.samples,
                loss=memory.loss,
                staleness=memory.staleness / max(memory.updates, 1),
                updates=memory.updates,
                rejected=memory.rejected,
                bytes_down=memory.bytes_down,
                bytes_up=memory.bytes_up,
                report=coordinator.strategy.report(coordinator.state),
            )
            self.evaluating.append(moment)
            self.mark = coordinator.samples + self.evaluate_every

    def evaluate_last(self) -> None:
        """Evaluate the finished model, and wait for it. A run that is interrupted here is not finished yet."""
        while self.measured_at != self.coordinator.samples and not self.interrupted:
            if not self.evaluating or self.evaluating[-1].samples != self.coordinator.samples:
                self.evaluate()
            for message in self.pool.poll(0.25, -math.inf):  # the run is over: virtual time stands still
                if isinstance(message, Evaluated):
                    self.measured(message)
            self.observer.refresh(self)
        self.finished = self.measured_at == self.coordinator.samples

    def measured(self, evaluated: Evaluated) -> None:
        """Pass on an evaluation."""
        moment = self.evaluating.popleft()
        self.measured_at, self.buffers = moment.samples, evaluated.buffers
        self.observer.evaluated(self, evaluated.result, moment)
