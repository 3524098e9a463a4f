"""One training on simulated machines, and what is kept of it: its curve, its traffic, and where the time went."""

import copy
import dataclasses
import functools
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from trainpool.errors import ConfigError, RunError
from trainpool.events import Returned, Send
from trainpool.messages import Recipe, ShardId, Task
from trainpool.pools.fleet import Fleet
from trainpool.pools.protocol import Conditions, Evaluated, Job, Message
from trainpool.pools.simulated import SimulatedPool
from trainpool.pools.usage import Span
from trainpool.record import Record
from trainpool.strategies import AnyStrategy
from trainpool.vector import Vector

if TYPE_CHECKING:
    from trainpool.experiment import Experiment

__all__ = ["Bench", "Outcome", "Point", "Timeline", "Trial", "Watch", "Work", "run"]

Watch: TypeAlias = Callable[[float, int, float | None], None]
"""Told about a training under way: virtual seconds, samples trained, and the accuracy of a new evaluation."""

TRACKS = 6
"""Workers whose time is kept: the fastest, the slowest, and others evenly between."""
TRACK_SPANS = 300
"""Spans kept of each: a few rounds show a method's rhythm, and a trial's file should stay small."""
BEGIN = 0.4
"""The part of a run before them: the beginning differs, as with a warm start."""


class Trial(msgspec.Struct, frozen=True):
    """One training among those that are compared."""

    method: str
    """Its label: the strategy's name, with the settings that were given."""
    rate: float
    """The peak learning rate."""
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', self.method)}-lr{self.rate:g}-seed{self.seed}"


class Point(msgspec.Struct, frozen=True):
    """One evaluation."""

    seconds: float
    """Of virtual time since the first worker was there."""
    samples: int
    """Merged."""
    bytes_down: int
    """To workers, up to then."""
    bytes_up: int
    """Back from them."""
    accuracy: float | None
    """On the test data, 0 to 1; None where targets are not labels."""
    loss: float | None
    """On the test data; None where it is not finite."""


class Timeline(msgspec.Struct, frozen=True):
    """What a few workers did for a while."""

    start: float
    """Virtual seconds."""
    end: float
    names: tuple[str, ...]
    """Of the workers, the fastest first."""
    speeds: tuple[float, ...]
    """Samples a second."""
    spans: tuple[tuple[Span, ...], ...]
    """Of each worker; where there is none, it waits."""

    @classmethod
    def of(cls, pool: SimulatedPool, tracks: int, spans: int, begin: float) -> "Timeline":
        """At most so many workers and spans of each, from virtual second `begin` on, as far as all of them go."""
        machines, end = pool.fleet.machines, pool.now()
        order = sorted(range(len(machines)), key=lambda i: -machines[i].speed)
        count = min(tracks, len(order))
        chosen = [order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count)]
        held: dict[int, list[Span]] = {i: [] for i in chosen}
        for span in pool.spans:
            if span.worker in held and span.end > begin and span.start < end:
                held[span.worker].append(span._replace(start=max(begin, span.start), end=min(end, span.end)))
        if len(pool.spans) == pool.room and pool.spans:
            end = min(end, max(begin, pool.spans[-1].start))  # what came later is not known
        for i in chosen:
            held[i].sort(key=lambda span: span.start)
            if len(held[i]) > spans:
                end = min(end, held[i][spans].start)
        return cls(
            start=begin,
            end=end,
            names=tuple(pool.names[i] for i in chosen),
            speeds=tuple(machines[i].speed for i in chosen),
            spans=tuple(tuple(s._replace(end=min(end, s.end)) for s in held[i] if s.start < end) for i in chosen),
        )


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the machines did, as the simulation counted it."""

    computed: float
    """Samples, with those of answers that were lost, cut off or refused."""
    computing: float
    """Seconds, over all workers."""
    waiting: float
    """Seconds without a task, over all workers."""
    there: float
    """Seconds, over all workers; what is neither computing nor waiting is transfer."""

    @classmethod
    def of(cls, pool: SimulatedPool) -> "Work":
        """What a pool's machines did so far."""
        usage = pool.usage()
        parts = (math.fsum(part) for part in (usage.busy, usage.waiting, usage.there))
        computing, waiting, there = parts
        return cls(computed=usage.samples, computing=computing, waiting=waiting, there=there)

    @property
    def utilisation(self) -> float:
        """The part of the machines' time, 0 to 1, in which they computed."""
        return self.computing / self.there if self.there else 0.0

    def waste(self, merged: int) -> float:
        """The part of the computed samples, 0 to 1, that no model learned from."""
        return max(0.0, 1 - merged / self.computed) if self.computed else 0.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one trial came to: a small file, and all that a report needs."""

    trial: Trial
    question: str
    """The hash of the question that it helps to answer."""
    curve: tuple[Point, ...]
    seconds: float
    """Of virtual time, for the whole budget."""
    samples: int
    """Merged."""
    updates: int
    rejected: int
    staleness: float
    """Mean over updates, in versions."""
    bytes_down: int
    bytes_up: int
    work: Work
    timeline: Timeline
    reason: str = ""
    """Why `auto` took its method and settings, where it did."""
    failed: str = ""
    """Why it stopped before its end, where it did."""

    def reached(self, target: float) -> Point | None:
        """The first evaluation at or above an accuracy; None where there was none within the budget."""
        return next((point for point in self.curve if point.accuracy is not None and point.accuracy >= target), None)

    def gap(self, target: float) -> float | None:
        """Virtual seconds between the evaluation that reached an accuracy and the one before, or the beginning."""
        point = self.reached(target)
        if point is None:
            return None
        place = self.curve.index(point)
        return point.seconds - (self.curve[place - 1].seconds if place else 0.0)

    @property
    def accuracy(self) -> float | None:
        """At the end; None where it stopped before."""
        return self.curve[-1].accuracy if self.curve and not self.failed else None


class Bench:
    """A simulated pool whose work is done in this process, if so wished, and that tells how it goes."""

    virtual = True

    def __init__(self, fleet: Fleet, *, inline: int | None = None, watch: Watch | None = None) -> None:
        """With `inline` this process trains, on the processor or on the GPU of that number; else one a core does."""
        self.pool = SimulatedPool(fleet)
        self.inline, self.watch, self.workers, self.samples = inline, watch, len(fleet), 0
        self.tasks: dict[int, Task] = {}
        """Those under way."""
        self.reached: dict[ShardId, int] = {}
        """How far each shard is trained, in samples."""

    def conditions(self, batch: int) -> Conditions:
        """See `Pool.conditions`."""
        return self.pool.conditions(batch)

    def open(self, job: Job) -> None:
        """See `Pool.open`."""
        if self.inline is not None and job.calibration is None:
            from trainpool.data.shards import load as load_shard
            from trainpool.kernels.torch import load

            kernel, _ = load(job.program, "auto", self.inline, threads=1)
            shards = functools.cache(functools.partial(load_shard, job.shards))
            test = None if job.test is None else shards(job.test)
            self.pool = SimulatedPool(self.pool.fleet, kernel=kernel, shards=shards, test=test)
        self.pool.open(job)

    def poll(self, timeout: float, alarm: float = math.inf) -> list[Message]:
        """Pass on what happened, and tell of it; see `Pool.poll`."""
        messages = self.pool.poll(timeout, alarm)
        for message in messages if self.watch else ():
            assert self.watch is not None
            if isinstance(message, Evaluated):
                self.watch(self.pool.now(), self.samples, message.result.accuracy)
            elif isinstance(message.event, Returned):
                report = message.event.report
                task = self.tasks.pop(report.task, None)
                before = self.reached.get(task.shard, 0) if task else 0
                if task and task.offset + report.samples > before:  # a copy of a task reaches no further than the first
                    self.reached[task.shard] = task.offset + report.samples
                    self.samples += self.reached[task.shard] - before
                self.watch(self.pool.now(), self.samples, None)
        return messages

    def send(self, command: Send) -> None:
        """See `Pool.send`."""
        self.tasks[command.task.id] = command.task
        self.pool.send(command)

    def restart(self, worker: str) -> None:
        """Nothing: a simulated worker comes back when its machine does."""

    def evaluate(self, vector: Vector) -> bool:
        """See `Pool.evaluate`."""
        return self.pool.evaluate(vector)

    def close(self) -> None:
        """See `Pool.close`."""
        self.pool.close()

    def now(self) -> float:
        """See `Pool.now`."""
        return self.pool.now()


def points(history: Sequence[Record]) -> tuple[Point, ...]:
    """A run's evaluations as a curve."""
    return tuple(
        Point(
            seconds=record["seconds"],
            samples=record["samples"],
            bytes_down=record["bytes_down"],
            bytes_up=record["bytes_up"],
            accuracy=record["test_accuracy"],
            loss=record["test_loss"] if math.isfinite(record["test_loss"]) else None,
        )
        for record in history
    )


def run(
    trial: Trial,
    experiment: "Experiment",
    *,
    question: str,
    strategy: AnyStrategy | str,
    recipe: Recipe,
    bench: Bench,
    **options: Any,
) -> Outcome:
    """Train a copy of the experiment's model; the experiment stays as it is.

    Args:
        trial: which one.
        experiment: model, data with a test set, and loss.
        question: the hash of the question that it belongs to.
        strategy: how updates are merged.
        recipe: what a worker does; the trial's learning rate takes the place of its own.
        bench: where the workers are.
        **options: of `trainpool.training.begin`: epochs, shards, skew, evaluate_every, recalibrate, cache.

    Raises:
        TrainpoolError: it could not begin or go on. A training that diverges is an outcome.
        KeyboardInterrupt: after Ctrl+C; nothing is kept of it.
    """
    from trainpool import training
    from trainpool.record import read_metrics

    chosen = msgspec.structs.replace(recipe, learning_rate=trial.rate)
    fresh = dataclasses.replace(experiment, model=copy.deepcopy(experiment.model))
    with tempfile.TemporaryDirectory(prefix="trainpool-", ignore_cleanup_errors=True) as place:
        folder, failed = Path(place) / "run", ""
        prepared = training.begin(
            fresh, out=folder, strategy=strategy, recipe=chosen, pool=bench, seed=trial.seed, **options
        )
        try:
            training.carry_on(prepared, quiet=True)
        except RunError as error:
            if not (folder / "summary.json").exists():
                raise  # the simulation itself could not go on
            failed = str(error).removesuffix(f". What was accepted is kept in {folder}")
        summary = msgspec.json.decode((folder / "summary.json").read_bytes())
        history = read_metrics(folder)
    curve = points(history)
    if any(point.accuracy is None for point in curve):
        raise ConfigError("methods are compared by accuracy, but this experiment's targets are not labels")
    return Outcome(
        trial=trial,
        question=question,
        curve=curve,
        seconds=summary["seconds"],
        samples=summary["samples"],
        updates=summary["updates"],
        rejected=summary["rejected"],
        staleness=summary["staleness"],
        bytes_down=summary["bytes_down"],
        bytes_up=summary["bytes_up"],
        work=Work.of(bench.pool),
        reason=prepared.config.reason and f"{prepared.config.strategy} for {prepared.config.reason}",
        timeline=Timeline.of(bench.pool, TRACKS, TRACK_SPANS, BEGIN * bench.now()),
        failed=failed,
    )
