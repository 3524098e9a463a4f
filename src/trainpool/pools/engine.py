"""Where a simulated pool's tasks are really trained: processes on all cores, or a kernel in this process.

Virtual time says when an answer is due; an engine only has to have it by then. It works ahead on everything that was
handed in, what is due first first, so that all cores are busy while several tasks are under way.
"""

import heapq
import itertools
import math
import queue
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from trainpool.errors import RunError
from trainpool.events import Send
from trainpool.kernels.protocol import Arrays, Kernel, KernelError
from trainpool.messages import Report, ShardId, Task
from trainpool.pools.local import STILLBIRTHS, Process, last_words, recalibrated, shared_folder
from trainpool.pools.protocol import Evaluated, Job
from trainpool.vector import Vector, chunks
from trainpool.worker import Answer, Broken, Done, Evaluate, Measured, Ready, Run, Setup, Stillborn

__all__ = ["Engine", "Inline", "Processes", "Trainer", "Work"]


@dataclass(slots=True, eq=False)
class Work:
    """A task to be trained, or a model to be evaluated, and what came of it."""

    task: Task | None
    """None for an evaluation."""
    vector: Vector | None
    """Parameters and buffers; released when the work is done."""
    anchor: Vector | None = None
    done: bool = False
    report: Report | None = None
    out: Vector | None = None
    """Delta and buffers."""
    evaluation: Evaluated | None = None
    failure: str = ""
    """Why the task could not be done."""

    def end(self) -> None:
        """There is a result: what it was made from is released."""
        self.done, self.vector, self.anchor = True, None, None


class Engine(Protocol):
    """Does work, sooner or later. What it gives depends on the work alone."""

    def put(self, work: Work, due: float) -> None:
        """Hand in work; of several, what is due first is done first."""

    def advance(self, wanted: Work | None, timeout: float) -> None:
        """See to it that `wanted` gets done; wait for progress at most `timeout` seconds."""

    def close(self) -> None:
        """Stop. May be called twice."""


class Inline:
    """A kernel in this process: does what is wanted when it is wanted."""

    def __init__(self, kernel: Kernel, shards: Callable[[ShardId], Arrays], test: Arrays | None) -> None:
        self.kernel, self.shards, self.test = kernel, shards, test

    def put(self, work: Work, due: float) -> None:
        """Nothing yet; see `Engine.put`."""

    def advance(self, wanted: Work | None, timeout: float) -> None:
        """Do it; see `Engine.advance`."""
        if wanted is None or wanted.done:
            return
        assert wanted.vector is not None
        if wanted.task is None:
            assert self.test is not None
            wanted.evaluation = Evaluated(self.kernel.evaluate(wanted.vector, self.test))
        else:
            wanted.out = np.empty_like(wanted.vector)
            try:
                shard = self.shards(wanted.task.shard)
                wanted.report = self.kernel.run(wanted.task, wanted.vector, wanted.anchor, shard, wanted.out)
            except KernelError as error:
                wanted.failure = str(error)
        wanted.end()

    def close(self) -> None:
        """Nothing to stop."""


class Processes:
    """Worker processes of one thread each, which may do any work."""

    def __init__(self, job: Job, count: int, device: str = "auto") -> None:
        """Start `count` processes, on PyTorch's `device` of that name."""
        self.job, self.count, self.device = job, count, device
        self.folder = shared_folder(job, count)
        self.inbox: queue.SimpleQueue[tuple[Process, Answer | None]] = queue.SimpleQueue()
        self.waiting: list[tuple[float, int, Work]] = []
        self.entries = itertools.count()
        self.doing: dict[Process, tuple[float, Work] | None] = {}
        self.free: deque[Process] = deque()
        self.started = self.unfinished_deaths = 0
        for number in range(self.count):
            self.start(number)

    def start(self, number: int) -> None:
        """Start a process; by its number it takes a GPU, where there are several."""
        setup = Setup(
            layout=self.job.layout,
            dtype=self.job.dtype.str,
            program=str(self.job.program),
            shards=str(self.job.shards),
            memory=str(self.folder / f"p{self.started}"),
            threads=1,
            device=self.device,
            number=number,
            polite=False,
            path=sys.path,
        )
        self.doing[Process(f"p{self.started}", self.job, setup, self.inbox)] = None
        self.started += 1

    def put(self, work: Work, due: float) -> None:
        """Queue it; see `Engine.put`."""
        heapq.heappush(self.waiting, (due, next(self.entries), work))
        self.dispatch()

    def dispatch(self) -> None:
        """Give work to the free processes."""
        while self.free and self.waiting:
            process, (due, _, work) = self.free.popleft(), heapq.heappop(self.waiting)
            assert work.vector is not None
            np.copyto(process.slot.vector, work.vector)
            if work.anchor is not None:
                np.copyto(process.slot.anchor, work.anchor)
            self.doing[process] = due, work
            if work.task is not None:
                process.tell(Run(work.task))
            else:
                assert self.job.test is not None
                process.tell(Evaluate(self.job.test, self.job.calibration))

    def advance(self, wanted: Work | None, timeout: float) -> None:
        """Take in what the processes say; see `Engine.advance`."""
        with suppress(queue.Empty):
            if wanted is not None and not wanted.done:
                self.hear(*self.inbox.get(timeout=timeout))
            while True:
                self.hear(*self.inbox.get_nowait())

    def hear(self, process: Process, answer: Answer | None) -> None:
        """One thing that a process said, or its death (None)."""
        if process not in self.doing:
            return
        if answer is None:
            self.replace(process)
            return
        held, self.doing[process] = self.doing[process], None
        work = held[1] if held else None
        match answer:
            case Ready():
                process.ready = True
                process.forget_memory()
            case Stillborn(reason):
                raise RunError(f"a worker could not start: {reason}")
            case Broken(-1, reason):
                raise RunError(f"the model could not be evaluated: {reason}")
            case Broken(_, reason) if work:
                work.failure = reason
            case Measured(result) if work:
                work.evaluation = Evaluated(result, recalibrated(process, self.job))
            case Done(report) if work:
                work.report, work.out = report, process.slot.out.copy()
        if work:
            work.end()
            self.unfinished_deaths = 0
        self.free.append(process)
        self.dispatch()

    def replace(self, process: Process) -> None:
        """Put a new process in the place of a dead one, and what it was doing back into the queue."""
        held = self.doing.pop(process)
        if process in self.free:
            self.free.remove(process)
        process.end()
        self.unfinished_deaths += 1
        if self.unfinished_deaths > STILLBIRTHS:
            words = last_words(self.job.log)
            raise RunError(f"{self.unfinished_deaths} workers in a row died without finishing a task: {words}")
        if held:
            heapq.heappush(self.waiting, (held[0], next(self.entries), held[1]))
        self.start(process.number)
        self.dispatch()

    def close(self) -> None:
        """End all processes; see `Engine.close`."""
        for process in self.doing:
            process.end()
        self.doing, self.waiting = {}, []
        self.free.clear()
        with suppress(OSError):  # Windows keeps a mapped file until this process ends
            self.folder.rmdir()


class Trainer:
    """Hands tasks and models to an engine, as copies of their own."""

    def __init__(self, engine: Engine, *, testable: bool) -> None:
        """`testable` says whether there is something to evaluate models on."""
        self.engine, self.testable = engine, testable
        self.evaluations: deque[Work] = deque()
        """In the order asked for."""
        self.last: Vector | None = None
        """The last copy of a model."""

    def train(self, command: Send, steps: int, due: float) -> Work:
        """A task, or its first `steps`, whose answer is due at virtual time `due`."""
        task = command.task if steps == command.task.steps else msgspec.structs.replace(command.task, steps=steps)
        anchor = None if command.anchor is None else command.anchor.copy()
        last, trainable = self.last, command.parameters.size
        # The tasks of a synchronous round carry the same model: one copy serves them all.
        if last is None or not (same(last[:trainable], command.parameters) and same(last[trainable:], command.buffers)):
            last = self.last = np.concatenate([command.parameters, command.buffers])
        work = Work(task, last, anchor)
        self.engine.put(work, due)
        return work

    def evaluate(self, vector: Vector) -> bool:
        """An evaluation before all tasks; False where there is nothing to evaluate on."""
        if not self.testable:
            return False
        work = Work(None, vector.copy())
        self.evaluations.append(work)
        self.engine.put(work, -math.inf)
        if isinstance(self.engine, Inline):
            self.engine.advance(work, 0.0)
        return True

    def evaluated(self) -> Evaluated | None:
        """The result of the earliest evaluation, once, when it is there."""
        if not self.evaluations or not self.evaluations[0].done:
            return None
        return self.evaluations.popleft().evaluation

    def close(self) -> None:
        """Stop."""
        self.engine.close()
        self.evaluations.clear()
        self.last = None


def same(a: Vector, b: Vector) -> bool:
    """Whether two arrays have the same bits; a difference near the beginning, the usual one, is found at once."""
    bits = f"u{a.itemsize}"
    return (a.dtype, a.shape) == (b.dtype, b.shape) and all(
        np.array_equal(a[part].view(bits), b[part].view(bits)) for part in chunks(a.size)
    )
