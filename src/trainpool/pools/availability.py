"""When a fleet's machines are there, how fast, and how lucky: functions of (seed, machine, counter) alone."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from trainpool import rng
from trainpool.pools.fleet import Change, Fleet, uniform

__all__ = ["Availability", "Pieces", "Session"]

CYCLE = 30.0
"""Seconds that a visible and a hidden period of a browser tab take together, on average."""
PRESENCE, HIDING, LUCK = range(1, 4)  # what random numbers are for: streams of their own
GROUP, ROW = 256, 8
"""Machines, and numbers of each, that one call of the generator draws: singly each would cost a thousand times more."""
KEPT = 2
"""Blocks of a group that are kept for those of its machines that come to them later."""


class Session(NamedTuple):
    """One stay of a machine."""

    start: float
    """Seconds from the start of the run."""
    end: float
    """Infinite where it stays for good."""
    crash: bool
    """Whether it goes without a word."""


class Availability:
    """A fleet's stays, speeds and luck, machine by machine; each iterator is taken once."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.keys = [rng.fold(rng.key(fleet.seed), purpose) for purpose in range(LUCK + 1)]
        self.blocks: dict[tuple[int, int], dict[int, np.ndarray[Any, Any]]] = {}
        """The newest of each purpose and group, by number: `[GROUP, ROW]`."""
        self.changes: dict[int, list[Change]] = {}
        for change in fleet.trace:
            self.changes.setdefault(change.worker, []).append(change)

    def numbers(self, purpose: int, machine: int) -> Iterator[float]:
        """One machine's random numbers for one purpose, in (0, 1), drawn for many machines at a time.

        A machine that is far behind the others of its group draws its own again: blocks are not kept for it.
        """
        group, place = divmod(machine, GROUP)
        key, kept = self.keys[purpose], self.blocks.setdefault((purpose, group), {})
        for block in itertools.count():
            start = ((block << 24) + group) * GROUP * ROW
            if block in kept:
                row = kept[block][place]
            elif kept and block < min(kept):
                row = uniform(key, start + place * ROW, ROW)
            else:
                kept[block] = uniform(key, start, GROUP * ROW).reshape(GROUP, ROW)
                if len(kept) > KEPT:
                    del kept[min(kept)]
                row = kept[block][place]
            yield from row.tolist()

    def sessions(self, machine: int) -> Iterator[Session]:
        """The stays of a machine, in order."""
        fleet = self.fleet
        if fleet.trace:
            yield from self.traced(machine)
            return
        if not fleet.churn:
            yield Session(0.0, math.inf, False)
            return
        absence = fleet.session * fleet.churn / (1 - fleet.churn)
        numbers = self.numbers(PRESENCE, machine)
        # As if it had gone on for ever: some are away at the start. What is left of an absence is exponential as well.
        away = next(numbers) < fleet.churn
        first = -absence * math.log(next(numbers))
        time = first if away else 0.0
        while True:
            end = time - fleet.session * math.log(next(numbers))
            yield Session(time, end, next(numbers) < fleet.crash)
            time = end - absence * math.log(next(numbers))

    def traced(self, machine: int) -> Iterator[Session]:
        """The stays of a machine that a trace describes."""
        start: float | None = None
        for change in self.changes.get(machine, ()):
            if change.event == "join":
                start = change.time
            elif change.event != "speed" and start is not None:
                yield Session(start, change.time, change.event == "crash")
                start = None
        if start is not None:
            yield Session(start, math.inf, False)

    def pieces(self, machine: int) -> Iterator[tuple[float, float]]:
        """A machine's speed over time: (until, samples a second), in order; the last one ends never."""
        fleet, speed = self.fleet, self.fleet.machines[machine].speed
        for change in self.changes.get(machine, ()):
            if change.event == "speed":
                yield change.time, speed
                speed = change.value
        if fleet.hidden:
            numbers = self.numbers(HIDING, machine)
            hidden, time = next(numbers) < fleet.hidden, 0.0
            while True:
                time -= CYCLE * (fleet.hidden if hidden else 1 - fleet.hidden) * math.log(next(numbers))
                yield time, speed / fleet.slowdown if hidden else speed
                hidden = not hidden
        yield math.inf, speed

    def luck(self, machine: int) -> Iterator[float]:
        """One number in (0, 1) for each task of a machine: what becomes of the answer."""
        return self.numbers(LUCK, machine)


class Pieces:
    """A machine's speed over time, for questions whose `start` never decreases."""

    __slots__ = ("ahead", "source", "speed", "until")

    def __init__(self, source: Iterator[tuple[float, float]]) -> None:
        self.source = source
        self.until, self.speed = next(source)
        self.ahead: list[tuple[float, float]] = []
        """Pieces that were looked at and have not begun."""

    def seek(self, start: float) -> None:
        """Go to the piece that holds `start`."""
        while self.until <= start:
            self.until, self.speed = self.ahead.pop(0) if self.ahead else next(self.source)

    def after(self) -> Iterator[tuple[float, float]]:
        """The pieces after this one."""
        for place in itertools.count():
            if place == len(self.ahead):
                self.ahead.append(next(self.source))
            yield self.ahead[place]

    def finish(self, start: float, samples: float) -> float:
        """When `samples` are computed that are begun at `start`."""
        if self.until <= start:
            self.seek(start)
        end = start + samples / self.speed
        if end <= self.until:
            return end
        samples, start = samples - (self.until - start) * self.speed, self.until
        for until, speed in self.after():
            end = start + samples / speed
            if end <= until:
                break
            samples, start = samples - (until - start) * speed, until
        return end

    def done(self, start: float, end: float) -> float:
        """Samples computed from `start` to `end`; none where that is no later."""
        if end <= start:
            return 0.0
        self.seek(start)
        total = (min(self.until, end) - start) * self.speed
        if end > self.until:
            start = self.until
            for until, speed in self.after():
                total += (min(until, end) - start) * speed
                if end <= until:
                    break
                start = until
        return total
