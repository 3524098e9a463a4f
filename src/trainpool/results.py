"""From outcomes to an answer: medians and ranges over seeds, speed-ups, and a sentence that a person can repeat."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainpool.trial import Outcome

__all__ = ["REFERENCE", "Capacity", "Results", "Row", "Spread", "Tuning", "best_rate", "grid", "row"]

REFERENCE = "serial"
"""The method that runs on the fastest machine alone, which every speed-up is measured against."""
WIDER = 2
"""How often a grid of learning rates is extended beyond each of its ends."""


class Capacity(msgspec.Struct, frozen=True):
    """What the machines could do if all were there all the time."""

    total: float
    """Samples a second of all machines together."""
    best: float
    """Samples a second of the fastest machine."""

    @property
    def ideal(self) -> float:
        """The speed-up over the fastest machine alone if none ever waited and no sample lost its worth."""
        return self.total / self.best


class Spread(msgspec.Struct, frozen=True):
    """A number over seeds. None is what was never there: a time to a target that was never reached."""

    median: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Iterable[float | None], absent: float = math.inf) -> "Spread":
        """Of one value a seed, at least one; None counts as `absent`, plus or minus infinity, in median and range."""
        known = [absent if value is None else float(value) for value in values]
        found = (statistics.median(known), min(known), max(known))
        return cls(*(value if math.isfinite(value) else None for value in found))


class Tuning(msgspec.Struct, frozen=True):
    """One point of the grid of learning rates, with the first seed."""

    rate: float
    seconds: float | None
    """To the target; None is never."""
    accuracy: float | None
    """At the end; None where the training failed."""
    failed: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One method over all seeds."""

    method: str
    rate: float
    """The peak learning rate that was taken."""
    grid: tuple[Tuning, ...]
    """What it was chosen from, the lowest first; a single one is no choice."""
    seeds: int
    reached: int
    """Seeds that reached the target."""
    reason: str
    """What `auto` took, and why; empty for every other method."""
    failures: tuple[str, ...]
    """Why trainings stopped early, one a seed that did."""
    seconds: Spread
    """Of virtual time to the target."""
    gap: Spread
    """Of virtual time between the evaluation at the target and the one before: how finely the time is known."""
    speedup: Spread
    """The reference's time to the target over this method's, seed by seed."""
    share: float | None
    """The median speed-up over the ideal one."""
    accuracy: Spread
    """At the end, 0 to 1."""
    total_seconds: Spread
    """Of virtual time for the whole budget."""
    utilisation: Spread
    """Part of the time that workers are there, 0 to 1."""
    waste: Spread
    """Part of the computed samples, 0 to 1."""
    staleness: Spread
    """In versions, the mean over updates."""
    updates: Spread
    target_down: Spread
    """Bytes to workers until the target."""
    target_up: Spread
    """Bytes back until the target."""
    bytes_down: Spread
    """Bytes to workers for the whole budget."""
    bytes_up: Spread
    """Bytes back for the whole budget."""
    samples: float = 0.0
    """Merged in the whole budget: the median, of the trainings that did not stop early; 0 where all did."""

    @property
    def edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried, so that a better one may lie beyond."""
        return len(self.grid) > 1 and self.rate in (self.grid[0].rate, self.grid[-1].rate)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a question."""

    target: float
    """Accuracy, 0 to 1."""
    epochs: float
    """The budget, in passes over the training data."""
    capacity: Capacity
    reference: Row
    rows: tuple[Row, ...]
    """Every other method, the soonest at the target first."""

    @classmethod
    def of(
        cls, methods: Sequence[Sequence[Outcome]], target: float, epochs: float, capacity: Capacity, first_seed: int
    ) -> "Results":
        """From every outcome of every method; the first method is the reference.

        The outcomes of a method are those of the grid with the first seed, and those of the best rate with the others.
        """
        alone = best_of(methods[0], target, first_seed)
        reference, *others = (row(outcomes, target, capacity, alone, first_seed) for outcomes in methods)

        def rank(row: Row) -> tuple[float, float]:
            return math.inf if row.seconds.median is None else row.seconds.median, -(row.accuracy.median or 0.0)

        return cls(
            target=target, epochs=epochs, capacity=capacity, reference=reference, rows=tuple(sorted(others, key=rank))
        )


def best_rate(grid: Iterable[Outcome], target: float) -> float:
    """The best learning rate of a grid: soonest at the target, then most accurate, then lowest; failed ones last."""

    def rank(outcome: Outcome) -> tuple[bool, float, float, float]:
        point = outcome.reached(target)
        seconds = point.seconds if point else math.inf
        return bool(outcome.failed), seconds, -(outcome.accuracy or 0.0), outcome.trial.rate

    return min(grid, key=rank).trial.rate


def grid(rates: Sequence[float], known: Mapping[float, Outcome], target: float) -> list[float]:
    """The learning rates to be tried, of which some are known: those asked for, and more while the best is at an end.

    Where the lowest of the known ones is the best, half of it follows, and twice the highest likewise. A single rate
    is no grid.
    """
    found = sorted(rates)
    below = above = WIDER if len(found) > 1 else 0
    while all(rate in known for rate in found):
        best = best_rate((known[rate] for rate in found), target)
        if best == found[0] and below:
            found, below = [best / 2, *found], below - 1
        elif best == found[-1] and above:
            found, above = [*found, 2 * best], above - 1
        else:
            break
    return found


def best_of(outcomes: Iterable[Outcome], target: float, first_seed: int) -> list[Outcome]:
    """The outcomes of a method with its best rate, one a seed."""
    found = list(outcomes)
    rate = best_rate((outcome for outcome in found if outcome.trial.seed == first_seed), target)
    return [outcome for outcome in found if outcome.trial.rate == rate]


def speedups(alone: Iterable[Outcome], taken: Iterable[Outcome], target: float) -> Spread:
    """The reference's time to the target over a method's, seed by seed.

    0 where the method never got there, endless where the reference alone did not: both are None in the spread.
    """
    first = {outcome.trial.seed: outcome.reached(target) for outcome in alone}
    ratios = []
    for outcome in taken:
        point, other = outcome.reached(target), first.get(outcome.trial.seed)
        ratios.append(-math.inf if point is None else math.inf if other is None else other.seconds / point.seconds)
    return Spread.of(ratios)


def row(
    outcomes: Sequence[Outcome], target: float, capacity: Capacity, alone: Sequence[Outcome], first_seed: int
) -> Row:
    """One method's row.

    Args:
        outcomes: all of the method.
        target: accuracy, 0 to 1.
        capacity: what the machines could do.
        alone: the reference's outcomes, one a seed.
        first_seed: the seed of the grid.
    """
    tried = sorted((o for o in outcomes if o.trial.seed == first_seed), key=lambda outcome: outcome.trial.rate)
    taken = best_of(outcomes, target, first_seed)
    points = [outcome.reached(target) for outcome in taken]

    def until(field: str) -> Spread:
        return Spread.of(None if point is None else getattr(point, field) for point in points)

    speedup = speedups(alone, taken, target)
    whole = [outcome.samples for outcome in taken if not outcome.failed]
    tunings = []
    for outcome in tried:
        point = outcome.reached(target)
        tunings.append(Tuning(outcome.trial.rate, point.seconds if point else None, outcome.accuracy, outcome.failed))
    return Row(
        method=taken[0].trial.method,
        rate=taken[0].trial.rate,
        grid=tuple(tunings),
        seeds=len(taken),
        reached=sum(point is not None for point in points),
        reason=taken[0].reason,
        failures=tuple(outcome.failed for outcome in taken if outcome.failed),
        seconds=until("seconds"),
        gap=Spread.of(outcome.gap(target) for outcome in taken),
        speedup=speedup,
        share=None if speedup.median is None else speedup.median / capacity.ideal,
        accuracy=Spread.of((outcome.accuracy for outcome in taken), absent=-math.inf),
        total_seconds=Spread.of(None if outcome.failed else outcome.seconds for outcome in taken),
        utilisation=Spread.of(outcome.work.utilisation for outcome in taken),
        waste=Spread.of(outcome.work.waste(outcome.samples) for outcome in taken),
        staleness=Spread.of(outcome.staleness for outcome in taken),
        updates=Spread.of(outcome.updates for outcome in taken),
        target_down=until("bytes_down"),
        target_up=until("bytes_up"),
        bytes_down=Spread.of(outcome.bytes_down for outcome in taken),
        bytes_up=Spread.of(outcome.bytes_up for outcome in taken),
        samples=statistics.median(whole) if whole else 0.0,
    )
