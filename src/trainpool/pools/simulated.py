"""A pool in virtual time: machines that differ, fail and leave, in front of the very coordinator that is deployed.

    tp.train(experiment, pool=tp.SimulatedPool(fleet(20, spread=8, churn=0.2)))

A task goes through download (latency + bits/down), computing (samples at the machine's speed, as it changes) and
upload; then its answer arrives and the worker asks again. With `fidelity="real"` every task whose answer arrives is
really trained, on all cores; with `"timing"` nothing is, and only the schedule, the bytes and the waste are real.

Virtual time, never the clock of this machine, decides what happens when: the same arguments give the same events and
the same bits, for any number of processes. (A GPU's own bits may differ from run to run.)

- A machine that **crashes** says nothing: the coordinator learns of it from a deadline, or when the worker asks again.
- A machine that **leaves** says so. Before that it hands in the steps it has, where the task is `partial`, or the
  answer that it was about to send, unless sending would outlast its absence.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from trainpool.errors import ConfigError, RunError
from trainpool.events import Asked, Failed, Joined, Left, Returned, Send, Tick, WorkerId
from trainpool.kernels.protocol import Arrays, Kernel
from trainpool.messages import Report, ShardId, Task
from trainpool.pools.agenda import Agenda
from trainpool.pools.availability import Availability, Pieces
from trainpool.pools.engine import Inline, Processes, Trainer, Work
from trainpool.pools.fleet import Fleet, Machine
from trainpool.pools.host import Host, usage
from trainpool.pools.local import cores
from trainpool.pools.protocol import Arrival, Conditions, Job, Message
from trainpool.pools.usage import Kind, Span, Usage
from trainpool.vector import Vector

__all__ = ["SimulatedPool"]

JOIN, DEPART, ANSWER = range(3)
EMPTY: Vector = np.empty(0, np.float32)
Due: TypeAlias = tuple[Task, int, float, int, int, int, Work | None]
"""An answer to come: to which task, steps, seconds of computing, how often, bytes, parameters, the training."""
PATIENCE = 1_000_000
"""Things that may happen in a row, and a hundred for each machine, while no worker has or gets a task."""


class SimulatedPool:
    """Virtual workers."""

    virtual = True

    def __init__(
        self,
        workers: Fleet | Sequence[Machine],
        *,
        fidelity: Literal["real", "timing"] = "real",
        processes: int = 0,
        device: str = "auto",
        size: int = 0,
        spans: int = 100_000,
        kernel: Kernel | None = None,
        shards: Callable[[ShardId], Arrays] | None = None,
        test: Arrays | None = None,
    ) -> None:
        """Simulate `workers`.

        Args:
            workers: a fleet, or its machines where they are always there.
            fidelity: `real` trains every task whose answer arrives, `timing` none.
            processes: that train; 0 means one a core. On CPUs their number changes no bit.
            device: where they do: PyTorch's name of it, or `auto`, which shares out the GPUs where there are some.
            size: bytes that a model counts as; 0 means its own, of which `timing` has none.
            spans: how many spans to keep for a plot, from the start on; `timing` keeps none.
            kernel: trains in this process instead of in others, when an answer is due.
            shards: finds the kernel's data.
            test: what the kernel evaluates models on.

        Raises:
            ConfigError: a value that cannot be.
        """
        if isinstance(workers, int):
            raise ConfigError(f"SimulatedPool takes machines: write SimulatedPool(tp.fleet({workers}))")
        self.fleet = workers if isinstance(workers, Fleet) else Fleet(tuple(workers))
        if fidelity not in ("real", "timing"):
            raise ConfigError(f"fidelity is 'real' or 'timing', not {fidelity!r}")
        if processes < 0 or size < 0 or spans < 0:
            raise ConfigError(f"processes ({processes}), size ({size}) and spans ({spans}) must not be negative")
        if (kernel is None) != (shards is None):
            raise ConfigError("a kernel needs shards, a function from a shard's name to its arrays; give both or none")
        if fidelity == "timing" and kernel is not None:
            raise ConfigError("fidelity='timing' trains nothing: leave out the kernel")
        self.workers = n = len(self.fleet)
        self.fidelity, self.size = fidelity, size
        self.processes, self.device = processes, device
        self.room = spans if fidelity == "real" else 0
        self.inline = None if kernel is None or shards is None else Inline(kernel, shards, test)
        self.names = self.fleet.names or tuple(f"w{i}" for i in range(n))
        self.trainer: Trainer | None = None
        self.opened = False
        self.reset()

    def reset(self) -> None:
        """The beginning: nobody is there."""
        fleet = self.fleet
        self.time = 0.0
        self.agenda = Agenda()
        """When, a number for order, what, which machine, and of an answer what it will be."""
        self.entries = itertools.count()
        self.hosts: dict[WorkerId, Host] = {}
        availability = Availability(fleet)
        for i, (name, machine) in enumerate(zip(self.names, fleet.machines, strict=True)):
            sessions, speed = availability.sessions(i), Pieces(availability.pieces(i))
            luck = availability.luck(i) if fleet.lost + fleet.duplicated else None
            asks = Arrival(Asked(name))
            self.hosts[name] = Host(i, name, asks, machine, speed, sessions, luck, next(sessions, None))
        self.spans: list[Span] = []
        """What the machines did, for a plot: the first spans, in the order in which they were foreseen."""
        self.up = self.down = 0  # bytes
        self.out = 0
        """Answers that the coordinator is owed, for all it knows."""
        self.barren = 0
        """Things that happened in a row while nobody had a task."""

    def conditions(self, batch: int) -> Conditions:
        """What the fleet is like, as if all were there and visible: a deployed pool would have to measure it."""
        fleet = self.fleet
        step = batch / fleet.best
        line = sorted(fleet.machines, key=lambda machine: 1 / machine.up + 1 / machine.down)[len(fleet) // 2]
        return Conditions(
            speeds=fleet.speeds,
            travel=((8 / line.up + 8 / line.down) / step, 2 * line.latency / step),
        )

    def open(self, job: Job | None = None) -> None:
        """Put every machine's arrival on the agenda; see `Pool.open`."""
        if self.opened:
            self.reset()
        self.opened = True
        if self.fidelity == "timing":
            if job is not None:
                raise ConfigError("fidelity='timing' trains nothing: leave it out to train, or use `timing`")
        elif self.inline is not None:
            self.trainer = Trainer(self.inline, testable=self.inline.test is not None)
        elif job is not None:
            # Never more processes than there can be work for: a task a machine, and an evaluation.
            count = min(self.processes or cores(), self.workers + 1)
            self.trainer = Trainer(Processes(job, count, self.device), testable=job.test is not None)
        else:
            raise ConfigError("fidelity='real' needs a kernel and shards, or a job as `train` makes it")
        for host in self.hosts.values():
            if host.stay is not None:
                self.plan(host.stay.start, JOIN, host)

    def plan(self, when: float, kind: int, host: Host) -> None:
        """Put something on the agenda."""
        self.agenda.push((when, next(self.entries), kind, host, None))

    def poll(self, timeout: float, alarm: float = math.inf) -> list[Message]:
        """The next thing on the agenda; the clock jumps there. Waits only for results; see `Pool.poll`."""
        trainer = self.trainer
        if trainer is None:
            return self.step(alarm)
        deadline: float | None = None
        while True:
            wanted = self.wanted(trainer, alarm)
            if wanted is None:
                trainer.engine.advance(None, 0.0)
            if (result := trainer.evaluated()) is not None:
                return [result]
            if wanted is None:
                return self.step(alarm)
            deadline = deadline or time.monotonic() + timeout
            rest = deadline - time.monotonic()
            if rest <= 0:
                return []
            trainer.engine.advance(wanted, rest)

    def wanted(self, trainer: Trainer, alarm: float) -> Work | None:
        """What the clock has to wait for: the answer that is due; an evaluation, when nothing else is to happen."""
        work: Work | None = None
        if trainer.evaluations and (self.out == 0 or not self.agenda or alarm < self.time):
            work = trainer.evaluations[0]
        elif self.agenda and (first := self.agenda.first())[2] == ANSWER and first[0] <= alarm:
            work = first[4][-1]
        return None if work is None or work.done else work

    def step(self, alarm: float) -> list[Message]:
        """Let the next thing happen."""
        agenda = self.agenda
        if not agenda.count or self.barren > PATIENCE:
            self.check(alarm)
        if not agenda.count:
            return self.ring(alarm)
        entry = agenda.pop()
        when, _, kind, host, answer = entry
        if when > alarm:
            agenda.push(entry)
            return self.ring(alarm)
        self.time = when
        if kind == ANSWER:
            return self.answer(host, answer)
        self.barren += self.out == 0
        return self.join(host) if kind == JOIN else self.depart(host)

    def ring(self, alarm: float) -> list[Message]:
        """The coordinator's time has come."""
        self.time = max(self.time, alarm)
        self.barren += self.out == 0
        return [Arrival(Tick())]

    def check(self, alarm: float) -> None:
        """Raise RunError where nothing will ever happen again."""
        if self.agenda.count:
            stuck = self.barren > PATIENCE + 100 * self.workers
        else:  # a unit that is overdue may still go to a worker that waits
            stuck = alarm == math.inf or self.out == 0 or all(host.since is None for host in self.hosts.values())
        if stuck:
            there = sum(host.arrived is not None for host in self.hosts.values())
            raise RunError(
                f"nothing can happen any more after {self.time:g} virtual seconds: {there} of {self.workers} "
                f"machines are there, {self.out} tasks unanswered; let machines of the fleet stay or come back"
            )

    def join(self, host: Host) -> list[Message]:
        """A machine arrives."""
        stay = host.stay
        assert stay is not None
        host.stay = next(host.sessions, None)
        host.leaves, host.silent = stay.end, stay.crash
        if stay.end < math.inf:
            self.plan(stay.end, DEPART, host)
        host.arrived = host.since = self.time
        self.release(host)
        return [Arrival(Joined(host.name)), host.asks]

    def depart(self, host: Host) -> list[Message]:
        """A machine goes, or stops working while its last answer is on the way."""
        stay = host.stay
        if stay is not None:
            self.plan(stay.start, JOIN, host)
        host.leave(self.time)
        self.note(host, self.time, math.inf if stay is None else stay.start, "away")
        if host.silent or host.staying:
            return []
        self.release(host)
        return [Arrival(Left(host.name))]

    def release(self, host: Host) -> None:
        """The coordinator expects no answer of this worker any more."""
        if host.held:
            host.held = False
            self.out -= 1

    def note(self, host: Host, start: float, end: float, kind: Kind) -> None:
        """Keep a span, while there is room."""
        if start < end and len(self.spans) < self.room:
            self.spans.append(Span(host.number, start, end, kind))

    def send(self, command: Send) -> None:
        """Begin a task, and find out what will become of it; see `Pool.send`."""
        now, host, task = self.time, self.hosts[command.worker], command.task
        self.barren = 0
        if not host.held:
            host.held = True
            self.out += 1
        up = self.size or command.parameters.nbytes + command.buffers.nbytes
        down = up if command.anchor is None else up + (self.size or command.anchor.nbytes)
        self.down += down
        if host.arrived is None:
            return  # it crashed, and the coordinator does not know
        host.rouse(now)
        machine = host.machine
        begin = now + machine.latency + 8 * down / machine.down
        sending = machine.latency + 8 * up / machine.up
        steps, samples = task.steps, task.steps * task.batch
        end = stop = host.speed.finish(begin, samples)
        arrival, leaves, computed = end + sending, host.leaves, float(samples)
        if arrival >= leaves:
            if end > leaves:
                stop, computed = leaves, host.speed.done(begin, leaves)
            steps, end, arrival = self.cut(host, task, begin, end, computed, sending)
        if begin < stop:
            host.compute(begin, stop, computed)
        if self.room:
            sent = arrival if steps else min(arrival, leaves)
            self.note(host, now, min(begin, sent), "download")
            self.note(host, begin, stop, "compute")
            self.note(host, max(begin, stop), sent, "upload")
        if not steps:
            return
        host.staying = arrival >= leaves
        copies = 1
        if host.luck is not None:
            luck, lost = next(host.luck), self.fleet.lost
            copies = 0 if luck < lost else 2 if luck < lost + self.fleet.duplicated else 1
        work = self.trainer.train(command, steps, arrival) if self.trainer is not None and copies else None
        due: Due = (task, steps, end - begin, copies, up, command.parameters.size, work)
        self.agenda.push((arrival, next(self.entries), ANSWER, host, due))

    def cut(
        self, host: Host, task: Task, begin: float, end: float, computed: float, sending: float
    ) -> tuple[int, float, float]:
        """A departure falls into a task: the steps that arrive all the same, when they are computed and when there."""
        leaves, stay, steps, arrival = host.leaves, host.stay, task.steps, end + sending
        if end > leaves:
            # The tolerance is for a step that ends just then.
            steps = min(steps - 1, int(computed / task.batch + 1e-9)) if task.partial else 0
            end, arrival = host.speed.finish(begin, steps * task.batch), leaves + sending
        gone = host.silent or (stay is not None and arrival >= stay.start)
        return 0 if gone else steps, end, arrival

    def answer(self, host: Host, due: Due) -> list[Message]:
        """A task's end: its answer, unless that is lost, and what the worker says next."""
        task, steps, seconds, copies, up, trainable, work = due
        self.release(host)
        name = host.name
        messages: list[Message] = []
        if work is not None and work.failure:
            messages = [Arrival(Failed(name, task.id, work.failure))] * copies
        elif copies:
            self.up += up * copies
            loss, delta, buffers = 0.0, EMPTY, EMPTY
            if work is not None:
                assert work.report is not None
                assert work.out is not None
                loss, delta, buffers = work.report.loss, work.out[:trainable], work.out[trainable:]
            report = Report(task=task.id, steps=steps, samples=steps * task.batch, loss=loss, seconds=seconds)
            messages = [Arrival(Returned(name, report), delta, buffers)] * copies
        if host.staying:
            host.staying = False
            messages.append(Arrival(Left(name)))
        else:
            host.since = self.time
            messages.append(host.asks)
        return messages

    def restart(self, worker: str) -> None:
        """Nothing: a machine that is silent has crashed, and comes back by itself."""

    def evaluate(self, vector: Vector) -> bool:
        """Queue an evaluation before all tasks; False where there are no test data. See `Pool.evaluate`."""
        return self.trainer is not None and self.trainer.evaluate(vector)

    def close(self) -> None:
        """End the processes; `usage` and `spans` stay. See `Pool.close`."""
        if self.trainer is not None:
            self.trainer.close()
            self.trainer = None
        self.agenda = Agenda()

    def now(self) -> float:
        """The virtual time in seconds."""
        return self.time

    def usage(self) -> Usage:
        """What the machines did so far, in numbers."""
        return usage([*self.hosts.values()], self.time, self.up, self.down)
