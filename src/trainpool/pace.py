"""How long tasks take: what steps and transfers cost each worker, how many steps fit a task, when an answer is late."""

from dataclasses import dataclass, field

__all__ = ["Pace", "Speed"]

WINDOW = 7
"""Tasks that a worker's estimate looks back on: few, so that it follows a machine that slows down."""
REMEMBERED = 10_000
"""Workers that left whose speed is kept, for when they come back."""


@dataclass(slots=True)
class Speed:
    """What was measured of one worker's last tasks, and the medians."""

    steps: list[float] = field(default_factory=list)
    """Seconds a step."""
    overheads: list[float] = field(default_factory=list)
    """Seconds from sending the task to having the answer in which it did not compute: transfer, waiting."""
    step: float = 0.0
    overhead: float = 0.0
    range: float = 0.0
    """From the least to the most seconds a step."""
    tasks: int = 0

    def add(self, step: float, overhead: float) -> None:
        """What one task took takes the place of the oldest one of the window."""
        times, overheads = self.steps, self.overheads
        if len(times) < WINDOW:
            times.append(step)
            overheads.append(overhead)
        else:
            oldest = self.tasks % WINDOW
            times[oldest], overheads[oldest] = step, overhead
        self.tasks += 1
        middle = len(times) // 2  # of an even number of times, the upper one of the middle two
        ordered = sorted(times)
        self.step, self.overhead = ordered[middle], sorted(overheads)[middle]
        self.range = ordered[-1] - ordered[0]

    def slow(self, spread: float) -> float:
        """Seconds above which a step is late: `spread` MADs above the median, and twice the median at least."""
        step = self.step
        if self.range * spread <= step:  # the MAD is no more than the range: mostly it need not be known
            return 2 * step
        mad = sorted([abs(time - step) for time in self.steps])[len(self.steps) // 2]
        return max(2 * step, step + spread * mad)


@dataclass
class Pace:
    """Measured speeds. A short first task measures a worker; later ones last as long as they should."""

    target: float = 2.0
    """Seconds that a task of free length should take."""
    probe: int = 5
    """Steps of the first task of a worker whose speed is unknown, where its length is free or flexible."""
    grace: float = 30.0
    """Seconds added to every deadline: start-up, transfer, a machine that was busy for a moment."""
    first: float = 300.0
    """Seconds allowed for a task while nobody's speed is known."""
    spread: float = 6.0
    """k of the deadline: a step may take the median + k·MAD of the steps measured, and twice the median at least."""
    speculate: bool = True
    """Whether an idle worker may copy a task that another is late with, when nothing else is left to do."""
    limit: int | None = None
    """The staleness above which an answer is refused, where the method sets no bound of its own; None takes any."""
    measured: dict[str, Speed] = field(default_factory=dict)
    """Of the workers that are there."""
    absent: dict[str, Speed] = field(default_factory=dict)
    """Of workers that left, the longest gone first."""
    fastest: str | None = None
    """The worker with the fewest seconds a step; None until it is looked for."""
    slowest: str | None = None
    """The one with the most: what is assumed of one that is unknown."""

    def record(self, worker: str, seconds: float, steps: int, elapsed: float | None = None) -> None:
        """A worker computed `steps` in `seconds`, and its answer came `elapsed` seconds after the task was sent.

        None where it says nothing of the way, as when the answer came too late.
        """
        speed = self.measured.get(worker)
        if speed is None:
            speed = self.measured[worker] = Speed()
        if seconds < 1e-6:
            seconds = 1e-6
        if elapsed is None:
            elapsed = seconds + speed.overhead
        speed.add(seconds / steps, elapsed - seconds if elapsed > seconds else 0.0)
        step = speed.step
        if self.fastest == worker:
            self.fastest = None  # it may have slowed down
        elif self.fastest is not None and step < self.measured[self.fastest].step:
            self.fastest = worker
        if self.slowest == worker:
            self.slowest = None
        elif self.slowest is not None and step > self.measured[self.slowest].step:
            self.slowest = worker

    def joined(self, worker: str) -> None:
        """A worker is there, perhaps again."""
        if worker in self.absent:
            self.measured[worker] = self.absent.pop(worker)
            self.fastest = self.slowest = None

    def left(self, worker: str) -> None:
        """A worker left."""
        if worker in self.measured:
            self.absent[worker] = self.measured.pop(worker)
            if len(self.absent) > REMEMBERED:
                del self.absent[next(iter(self.absent))]
            if self.fastest == worker:
                self.fastest = None
            if self.slowest == worker:
                self.slowest = None

    def longest(self) -> float:
        """The most seconds a step of a worker that is there; 0 while nobody's speed is known."""
        if self.slowest is None and self.measured:
            self.slowest = max(self.measured, key=lambda name: self.measured[name].step)
        return 0.0 if self.slowest is None else self.measured[self.slowest].step

    def step_seconds(self, worker: str) -> float | None:
        """The median seconds a step of a worker; None while unknown."""
        speed = self.measured.get(worker)
        return speed.step if speed else None

    def steps(self, worker: str) -> int:
        """Steps of a task of free length: `target` seconds with the transfer, but not more transfer than computing."""
        speed = self.measured.get(worker)
        if speed is None:
            return self.probe
        return max(1, round(max(self.target - speed.overhead, speed.overhead) / speed.step))

    def fit(self, worker: str, steps: int) -> int:
        """Steps that take this worker as long as `steps` take the fastest one, transfers included; at least one.

        Of an unknown worker it is assumed that it is as slow as the slowest known one, so that nobody waits for it.
        Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling", section 5: dynamic local updates.
        """
        speed = self.measured.get(worker)
        if self.fastest is None and self.measured:
            self.fastest = min(self.measured, key=lambda name: self.measured[name].step)
        if self.fastest is None:
            return min(steps, self.probe)
        best = self.measured[self.fastest]
        duration = best.overhead + steps * best.step
        if speed is None:
            return min(steps, self.probe, max(1, int(duration / self.longest() + 1e-6)))
        return min(steps, max(1, int((duration - speed.overhead) / speed.step + 1e-6)))

    def expected(self, worker: str, steps: int) -> float | None:
        """Seconds from sending a task to having its answer; None while nobody's speed is known."""
        speed = self.measured.get(worker)
        if speed is not None:
            return speed.overhead + steps * speed.step
        return steps * self.longest() or None

    def allowance(self, worker: str, steps: int) -> float:
        """Seconds after which an answer is overdue: from the worker's own speed, or the slowest known one's."""
        speed = self.measured.get(worker)
        if speed is None:
            return self.grace + 2 * steps * self.longest() if self.measured else self.first
        return self.grace + 2 * speed.overhead + steps * speed.slow(self.spread)
