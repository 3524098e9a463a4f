"""Processes that run a comparison's trials, one trial each at a time: with many cores many trials go on at once.

Each is a fresh interpreter (`python -m trainpool.crew`) that is told the question, then one trial after another, and
answers with lines of JSON. Which process runs a trial changes nothing in its outcome.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

import msgspec

from trainpool.errors import ConfigError, DataError, ModelError, RunError, TrainpoolError
from trainpool.question import Experiments, Question, experiments
from trainpool.trial import Bench, Outcome, Trial, run

__all__ = ["Crew", "News", "crew", "perform"]

ERRORS = {kind.__name__: kind for kind in (ConfigError, DataError, ModelError, RunError)}
NEWS_SECONDS = 0.2
"""Between two messages of a process about how its trial goes."""


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first thing that a process is told."""

    question: Question
    cache: str
    number: int
    """Of the process: it takes the GPU that falls to it, where there are some."""
    path: list[str]
    """The parent's `sys.path`, so that the author's modules are found."""


class News(msgspec.Struct, frozen=True, tag=True):
    """How a trial goes; see `trainpool.trial.Watch`."""

    trial: Trial
    seconds: float
    samples: int
    accuracy: float | None


class Done(msgspec.Struct, frozen=True, tag=True):
    """A trial ended."""

    outcome: Outcome


class Broken(msgspec.Struct, frozen=True, tag=True):
    """A trial could not be run."""

    kind: str
    reason: str


Answer: TypeAlias = News | Done | Broken


def perform(
    question: Question,
    trial: Trial,
    make: Experiments,
    cache: Path,
    *,
    bench: Bench | None = None,
) -> Outcome:
    """Run one trial of a question, on its machines where no bench is given; see `trainpool.trial.run`."""
    experiment = make(trial.seed)
    return run(
        trial,
        experiment,
        question=question.hash,
        strategy=question.strategy(trial.method, len(experiment.sources()[0])),
        recipe=question.recipe,
        bench=bench or Bench(question.fleet(trial)),
        cache=cache,
        **question.options(trial.method),
    )


class Crew:
    """Some processes, of which each runs one trial at a time."""

    def __init__(self, question: Question, cache: Path, count: int, log: Path) -> None:
        """Start `count` processes; what they print goes to the file `log`."""
        self.log = log
        self.inbox: queue.SimpleQueue[tuple[int, Answer | None]] = queue.SimpleQueue()
        self.children: list[subprocess.Popen[bytes]] = []
        self.free: deque[int] = deque(range(count))
        self.busy: set[int] = set()
        for number in range(count):
            with log.open("ab") as file:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "trainpool.crew"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env={"OMP_NUM_THREADS": "1"} | os.environ,
                )
            self.children.append(child)
            threading.Thread(target=self.listen, args=(number, child.stdout), daemon=True).start()
            self.tell(number, Setup(question, str(cache), number, sys.path))

    def tell(self, number: int, message: Setup | Trial) -> None:
        """Send a line; a process that just died is found out by its silence."""
        stream = self.children[number].stdin
        assert stream is not None
        with suppress(OSError):
            stream.write(msgspec.json.encode(message) + b"\n")
            stream.flush()

    def listen(self, number: int, stream: IO[bytes]) -> None:
        """Pass on answers until the process ends."""
        with suppress(OSError, ValueError, msgspec.MsgspecError):
            for line in stream:
                self.inbox.put((number, msgspec.json.decode(line, type=Answer)))
        self.inbox.put((number, None))

    def start(self, trial: Trial) -> None:
        """Give a trial to a free process."""
        number = self.free.popleft()
        self.busy.add(number)
        self.tell(number, trial)

    def poll(self, timeout: float) -> Iterator[News | Outcome]:
        """What happened; waits at most `timeout` seconds for something.

        Raises:
            TrainpoolError: a trial could not be run, or a process died.
        """
        with suppress(queue.Empty):
            number, answer = self.inbox.get(timeout=timeout)
            match answer:
                case News():
                    yield answer
                case Done(outcome):
                    self.busy.discard(number)
                    self.free.append(number)
                    yield outcome
                case Broken(kind, reason):
                    raise ERRORS.get(kind, RunError)(reason)
                case None:
                    raise RunError(f"a process that trained died (out of memory?); what it printed is in {self.log}")

    def close(self) -> None:
        """End all processes."""
        for child in self.children:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        with suppress(OSError):
            if not self.log.stat().st_size:
                self.log.unlink()


@contextmanager
def crew(question: Question, cache: Path, count: int, log: Path) -> Iterator[Crew]:
    """A crew that ends with the block, however it ends."""
    made = Crew(question, cache, count, log)
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    """Run the trials that the parent names, until it closes standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's
    commands = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the author's prints go to the log, not among the answers
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in commands:
            inbox.put(line)
        os._exit(0)  # the parent is gone, however it went

    threading.Thread(target=listen, daemon=True).start()
    setup = msgspec.json.decode(inbox.get(), type=Setup)
    sys.path[:] = setup.path
    cache = Path(setup.cache)
    make = experiments(setup.question, cache)

    def tell(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()

    while True:
        trial, last = msgspec.json.decode(inbox.get(), type=Trial), 0.0

        def watch(seconds: float, samples: int, accuracy: float | None, trial: Trial = trial) -> None:
            nonlocal last
            if accuracy is not None or time.monotonic() - last > NEWS_SECONDS:
                last = time.monotonic()
                tell(News(trial, seconds, samples, accuracy))

        try:
            bench = Bench(setup.question.fleet(trial), inline=setup.number, watch=watch)
            tell(Done(perform(setup.question, trial, make, cache, bench=bench)))
        except TrainpoolError as error:
            tell(Broken(type(error).__name__, str(error)))
        except Exception as error:
            traceback.print_exc()
            tell(Broken("RunError", f"{trial.name} failed: {type(error).__name__}: {' '.join(str(error).split())}"))


if __name__ == "__main__":
    main()
