"""How long tasks take: what each worker's steps cost, how many fit a task, and when an answer is overdue."""

import statistics
from dataclasses import dataclass, field

__all__ = ["Pace"]

WINDOW = 7
"""Tasks that a worker's estimate looks back on: few, so that it follows a machine that slows down."""


@dataclass
class Pace:
    """Measured speeds. A short first task measures a worker; later ones last `target` seconds where they may."""

    target: float = 2.0
    """Seconds that a task of free length should take."""
    probe: int = 5
    """Steps of the first task of a worker whose speed is unknown."""
    grace: float = 30.0
    """Seconds added to every deadline: start-up, transfer, a machine that was busy for a moment."""
    first: float = 300.0
    """Seconds allowed for a task while nobody's speed is known."""
    spread: float = 6.0
    """k of the deadline: a step may take the median + k·MAD of the steps measured (at least twice the median)."""
    measured: dict[str, list[float]] = field(default_factory=dict)
    """Seconds a step of each worker's last tasks."""

    def record(self, worker: str, seconds: float, steps: int) -> None:
        """A worker finished a task."""
        self.measured[worker] = [*self.measured.get(worker, []), max(seconds, 1e-6) / steps][-WINDOW:]

    def forget(self, worker: str) -> None:
        """A worker left."""
        self.measured.pop(worker, None)

    def step_seconds(self, worker: str) -> float | None:
        """The median seconds a step of a worker; None while unknown."""
        times = self.measured.get(worker)
        return statistics.median(times) if times else None

    def steps(self, worker: str) -> int:
        """Steps of a task of free length for this worker."""
        seconds = self.step_seconds(worker)
        return self.probe if seconds is None else max(1, round(self.target / seconds))

    def allowance(self, worker: str, steps: int) -> float:
        """Seconds after which an answer is overdue: from the worker's own speed, or the slowest known one's."""
        times = self.measured.get(worker)
        if not times:
            times = max(self.measured.values(), key=statistics.median, default=None)
        if not times:
            return self.first
        typical = statistics.median(times)
        deviation = statistics.median(abs(time - typical) for time in times)
        return self.grace + steps * max(2 * typical, typical + self.spread * deviation)
