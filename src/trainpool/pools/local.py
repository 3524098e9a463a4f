"""Worker processes on this machine, with parameters and deltas in shared memory.

Each worker is a fresh interpreter (so nothing is inherited that could deadlock, and a script needs no `__main__`
guard). A worker that dies is noticed by the end of its output, reported as `Left`, and replaced. One more process
evaluates models, so that evaluation never stalls a worker or a merge; it is replaced too, and does its evaluation anew.
"""

import math
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from trainpool.errors import ConfigError, RunError
from trainpool.events import Asked, Failed, Joined, Left, Returned, Send
from trainpool.pools.protocol import Arrival, Conditions, Evaluated, Job, Message
from trainpool.vector import Vector
from trainpool.worker import (
    Answer,
    Broken,
    Command,
    Done,
    Evaluate,
    Measured,
    Ready,
    Run,
    Setup,
    Slot,
    Stillborn,
    receive,
    transmit,
)

__all__ = ["LocalPool", "Process", "cores", "last_words", "shared_folder"]

EVALUATOR = "evaluator"
HANDING = 8.0
"""Allowed for handing a process a task and its answer back, in steps of a small network: there is no line, but a
journal, a merge, an evaluation on the same cores. With half of it two workers were a tenth slower, no more accurate."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2 << 30)}
"""For glibc's allocator, where there is one: keep what a step frees for the next step. By default it returns large
blocks to the system, and a third of a small network's step goes into getting them back, page by page."""
STILLBIRTHS = 3
"""Workers that may die in a row before any finishes a task; evaluators, before one finishes an evaluation."""
EVALUATION_GRACE = 60.0
EVALUATION_SPREAD = 20
"""An evaluation may take so many seconds, and besides so many times as long as the longest before it."""
SHARED = Path("/dev/shm")
"""Where files are in memory, on Linux."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_folder(job: Job, processes: int) -> Path:
    """A new folder with room for what so many processes share: in memory, else on the disk.

    Raises:
        RunError: there is room in neither.
    """
    wanted = (processes + 1) * Slot.room(job.layout, job.dtype)  # a dead one's is still there when the next one starts
    places = [*([SHARED] if SHARED.is_dir() else []), Path(tempfile.gettempdir())]
    free = [shutil.disk_usage(place).free for place in places]
    for place, room in zip(places, free, strict=True):
        if room >= wanted:
            return Path(tempfile.mkdtemp(prefix="trainpool-", dir=place))
    found = " and ".join(f"{room / 1e6:,.0f} in {place}" for place, room in zip(places, free, strict=True))
    raise RunError(
        f"{processes} processes share {wanted / 1e6:,.0f} MB of memory with this one, but there are only {found}: "
        f"use fewer workers, or make room (in Docker: --shm-size)"
    )


class Process:
    """One worker process and the thread that reads its answers."""

    def __init__(
        self, name: str, job: Job, setup: Setup, inbox: "queue.SimpleQueue[tuple[Process, Answer | None]]"
    ) -> None:
        self.name, self.job, self.number = name, job, setup.number
        self.memory = Path(setup.memory)
        try:
            self.slot = Slot(self.memory, job.layout, job.dtype)
        except OSError as error:
            raise RunError(f"no room for what a worker shares with this process: {error}") from error
        with job.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainpool.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=KEEP_MEMORY | os.environ,
            )
        self.ready = False
        self.inbox = inbox
        threading.Thread(target=self.listen, daemon=True).start()
        self.tell(setup)

    def listen(self) -> None:
        """Pass on answers until the process ends."""
        assert self.child.stdout is not None
        try:
            while True:
                self.inbox.put((self, receive(self.child.stdout, Answer)))
        except (EOFError, OSError, ValueError, msgspec.MsgspecError):
            self.inbox.put((self, None))

    def tell(self, command: Command) -> None:
        """Send a command; a process that just died is found out by its silence."""
        assert self.child.stdin is not None
        with suppress(OSError, ValueError):
            transmit(self.child.stdin, command)

    def forget_memory(self) -> None:
        """Take the shared file's name away, so that nothing stays behind even after `kill -9`; Windows must wait."""
        if os.name == "posix":
            self.memory.unlink(missing_ok=True)

    def end(self) -> None:
        """Kill the process and wait for it."""
        self.child.kill()
        self.child.wait()
        for stream in (self.child.stdin, self.child.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        with suppress(OSError):  # Windows keeps a mapped file until this process ends
            self.memory.unlink(missing_ok=True)


def recalibrated(process: Process, job: Job | None) -> Vector | None:
    """The buffers that a process measured for an evaluation, where it did."""
    if job is None or job.calibration is None:
        return None
    return process.slot.vector[process.slot.anchor.size :].copy()


def last_words(log: Path) -> str:
    """The last line that a worker printed, and where the rest is."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    said = f"its last line was {lines[-1]!r}" if lines else "it printed nothing (out of memory?)"
    return f"{said}; all output is in {log}"


class LocalPool:
    """Worker processes on this machine."""

    virtual = False

    def __init__(self, workers: int = 0, *, threads: int = 0, device: str = "auto") -> None:
        """`workers` 0 means one a core; `threads` 0 divides the cores among the workers.

        `device` is PyTorch's name of one, or `auto`: worker i takes GPU i where there are GPUs, else the processor.
        """
        if workers < 0 or threads < 0:
            raise ConfigError(f"workers ({workers}) and threads ({threads}) must not be negative")
        self.workers = workers or cores()
        self.threads = threads or max(1, cores() // self.workers)
        self.device = device
        self.processes: dict[str, Process] = {}
        self.started = 0
        self.unfinished_deaths = 0
        self.evaluator: Process | None = None
        self.evaluating = False
        self.evaluators_lost = 0
        """In a row."""
        self.asked = self.longest = 0.0
        """When the evaluation under way began, and seconds of the longest so far."""
        self.inbox: queue.SimpleQueue[tuple[Process, Answer | None]] = queue.SimpleQueue()
        self.job: Job | None = None

    def conditions(self, batch: int) -> Conditions:
        """Equal machines; see `Pool.conditions`."""
        return Conditions((1.0,) * self.workers, travel=(0.0, HANDING))

    def open(self, job: Job) -> None:
        """Start all processes; see `Pool.open`."""
        self.folder = shared_folder(job, self.workers + (job.test is not None))
        self.job = job
        self.inbox, self.evaluating = queue.SimpleQueue(), False  # what an earlier run left is none of this one's
        for number in range(self.workers):
            self.spawn(number)
        if job.test is not None:
            self.evaluator = self.start(EVALUATOR, self.workers)

    def spawn(self, number: int) -> None:
        """Start a worker with a name of its own; its number, by which it takes a GPU, may be that of a dead one."""
        name = f"w{self.started}"
        self.started += 1
        self.processes[name] = self.start(name, number)

    def start(self, name: str, number: int) -> Process:
        """Start a process."""
        assert self.job is not None
        setup = Setup(
            layout=self.job.layout,
            dtype=self.job.dtype.str,
            program=str(self.job.program),
            shards=str(self.job.shards),
            memory=str(self.folder / name),
            threads=self.threads,
            device=self.device,
            number=number,
            polite=name == EVALUATOR,
            path=sys.path,
        )
        return Process(name, self.job, setup, self.inbox)

    def poll(self, timeout: float, alarm: float = math.inf) -> list[Message]:
        """What happened; see `Pool.poll`."""
        messages: list[Message] = []
        limit = EVALUATION_GRACE + EVALUATION_SPREAD * self.longest
        if self.evaluator and self.evaluating and self.longest and self.now() - self.asked > limit:
            self.evaluator.child.kill()  # it hangs
        try:
            item = self.inbox.get(timeout=timeout)
            while True:
                messages += self.translate(*item)
                item = self.inbox.get_nowait()
        except queue.Empty:
            return messages

    def translate(self, process: Process, answer: Answer | None) -> list[Message]:
        """The coordinator's events for what a process said, or for its death (None)."""
        name = process.name
        match answer:
            case None if process is self.evaluator:
                return self.renew(process)
            case None:
                return self.replace(process)
            case Ready():
                process.ready = True
                process.forget_memory()
                if process is self.evaluator:
                    if self.evaluating:
                        self.measure(process)
                    return []
                return [Arrival(Joined(name)), Arrival(Asked(name))]
            case Stillborn(reason):
                raise RunError(f"a worker could not start: {reason}")
            case Measured(result):
                self.evaluating, self.evaluators_lost = False, 0
                self.longest = max(self.longest, self.now() - self.asked)
                return [Evaluated(result, recalibrated(process, self.job))]
            case Broken(-1, reason):
                raise RunError(f"the model could not be evaluated: {reason}")
            case Broken(task, reason):
                return [Arrival(Failed(name, task, reason)), Arrival(Asked(name))]
            case Done(report):
                self.unfinished_deaths = 0
                trainable = process.slot.anchor.size
                out = process.slot.out
                event = Returned(name, report)
                return [Arrival(event, out[:trainable], out[trainable:]), Arrival(Asked(name))]

    def replace(self, process: Process) -> list[Message]:
        """Put a new process in the place of a dead one."""
        if process.name not in self.processes:
            return []
        del self.processes[process.name]
        process.end()
        self.unfinished_deaths += 1
        if self.unfinished_deaths > STILLBIRTHS:
            assert self.job is not None
            words = last_words(self.job.log)
            raise RunError(f"{self.unfinished_deaths} workers in a row died without finishing a task: {words}")
        self.spawn(process.number)
        return [Arrival(Left(process.name))]

    def renew(self, process: Process) -> list[Message]:
        """Put a new evaluator in the place of a dead one; what that one was doing is done when the new one is ready."""
        assert self.job is not None
        process.end()
        self.evaluators_lost += 1
        if self.evaluators_lost > STILLBIRTHS:
            words = last_words(self.job.log)
            raise RunError(f"the process that evaluates models died {self.evaluators_lost} times in a row: {words}")
        self.evaluator = self.start(EVALUATOR, process.number)
        np.copyto(self.evaluator.slot.vector, process.slot.vector)
        self.asked = self.now()
        return []

    def restart(self, worker: str) -> None:
        """Kill a process that hangs; the end of its output then has it replaced. See `Pool.restart`."""
        if worker in self.processes:
            self.processes[worker].child.kill()

    def send(self, command: Send) -> None:
        """Copy the task's arrays into the worker's memory and start it; see `Pool.send`."""
        process = self.processes.get(command.worker)
        if process is None:
            return  # it died a moment ago: its `Left` is on the way
        trainable = command.parameters.size
        np.copyto(process.slot.vector[:trainable], command.parameters)
        np.copyto(process.slot.vector[trainable:], command.buffers)
        if command.anchor is not None:
            np.copyto(process.slot.anchor, command.anchor)
        process.tell(Run(command.task))

    def evaluate(self, vector: Vector) -> bool:
        """Start an evaluation beside the training; see `Pool.evaluate`."""
        assert self.job is not None
        if self.evaluator is None or self.job.test is None or self.evaluating or not self.evaluator.ready:
            return False
        np.copyto(self.evaluator.slot.vector, vector)
        self.evaluating = True
        self.measure(self.evaluator)
        return True

    def measure(self, evaluator: Process) -> None:
        """Have the model in the evaluator's memory measured."""
        assert self.job is not None
        assert self.job.test is not None
        self.asked = self.now()
        evaluator.tell(Evaluate(self.job.test, self.job.calibration))

    def close(self) -> None:
        """End all processes; see `Pool.close`."""
        for process in [*self.processes.values(), *([self.evaluator] if self.evaluator else [])]:
            process.end()
        self.processes, self.evaluator = {}, None
        if self.job is not None:
            with suppress(OSError):  # Windows keeps a mapped file until this process ends
                self.folder.rmdir()
            self.job = None

    def now(self) -> float:
        """Seconds of the monotonic clock; see `Pool.now`."""
        return time.monotonic()
