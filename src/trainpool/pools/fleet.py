"""Fleets: machines of unequal speed and bandwidth that come and go, crash, stall and lose answers, reproducibly.

    fleet(20, spread=8, churn=0.2, bandwidth=(10e6, 50e6), latency=0.05)

When a machine comes, leaves, crashes or is hidden is a function of (seed, machine, counter) alone. Every method that is
simulated on a fleet therefore meets the same departures, whatever it does (common random numbers), and machine 3 of
ten fares as machine 3 of a thousand does.

A trace is a CSV file with the header `worker,time,event,value`. `time` is in seconds and never decreases from line to
line of one worker. The events:

    join    the worker is there from now on; `value`, where given, is its speed in samples a second
    leave   it says goodbye and is away
    crash   it is away without a word, with whatever it was doing
    speed   it computes `value` samples a second from now on

A worker needs a speed before or at its first `join`; after its last line it stays as it is.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np

from trainpool import rng
from trainpool.errors import ConfigError, did_you_mean

__all__ = ["Change", "Fleet", "Machine", "fleet", "uniform"]

SPEED = 0  # the speeds' stream of random numbers; those of `Availability` come after it

EventName: TypeAlias = Literal["join", "leave", "crash", "speed"]
EVENTS: tuple[EventName, ...] = ("join", "leave", "crash", "speed")
HEADER = ["worker", "time", "event", "value"]


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine and its line."""

    speed: float
    """Samples a second while it is there and visible."""
    up: float = math.inf
    """Bits a second from it to the coordinator; infinite where transfers cost nothing."""
    down: float = math.inf
    """Bits a second from the coordinator to it."""
    latency: float = 0.0
    """Seconds that a message takes each way, besides."""

    def __post_init__(self) -> None:
        if not 0 < self.speed < math.inf:
            raise ConfigError(f"a machine's speed must be above 0 samples a second and finite, not {self.speed:g}")
        if not (self.up > 0 and self.down > 0):
            raise ConfigError(f"bandwidth must be above 0 bits a second, not {self.up:g} up and {self.down:g} down")
        if not 0 <= self.latency < math.inf:
            raise ConfigError(f"latency must be 0 or more seconds, not {self.latency:g}")


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a trace."""

    worker: int
    """The machine's number."""
    time: float
    """Seconds from the start."""
    event: EventName
    value: float = 0.0
    """Samples a second, of `speed`."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines and their habits. Make one with `fleet`, or from a list of machines."""

    machines: tuple[Machine, ...]
    churn: float = 0.0
    """The part of the time that a worker is away, 0 to below 1; stays and absences are exponential."""
    session: float = 60.0
    """Mean seconds between a worker's arrival and its departure."""
    crash: float = 0.5
    """The part of the departures, 0 to 1, without a word and in mid-task. The others are announced: the worker first
    returns what it has, if its task allows partial answers."""
    hidden: float = 0.0
    """The part of the time, 0 to below 1, that a browser tab is hidden and runs slower."""
    slowdown: float = 10.0
    """How many times slower."""
    lost: float = 0.0
    """The part of the answers, 0 to below 1, that never arrive; the worker then asks again."""
    duplicated: float = 0.0
    """The part of the answers, 0 to below 1, that arrive twice."""
    seed: int = 0
    """Of all chance in the fleet."""
    names: tuple[str, ...] = ()
    """The workers' names where they come from a trace; otherwise `w0`, `w1`, ..."""
    trace: tuple[Change, ...] = ()
    """When machines come, leave and change speed, where that comes from a file."""

    def __post_init__(self) -> None:
        if not self.machines:
            raise ConfigError("a fleet needs at least one machine")
        for name in ("churn", "hidden", "lost", "duplicated"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is a part of the whole, from 0 to below 1, not {getattr(self, name):g}")
        if not 0 <= self.crash <= 1:
            raise ConfigError(f"crash is the part of the departures without a word, from 0 to 1, not {self.crash:g}")
        if self.lost + self.duplicated >= 1:
            raise ConfigError(f"lost ({self.lost:g}) and duplicated ({self.duplicated:g}) must add up to less than 1")
        if not 0 < self.session < math.inf:
            raise ConfigError(f"session is the mean seconds of a stay: above 0 and finite, not {self.session:g}")
        if not 1 <= self.slowdown < math.inf:
            raise ConfigError(f"slowdown must be 1 or more, not {self.slowdown:g}")
        if self.trace and (self.churn or self.hidden):
            raise ConfigError("with a trace leave out churn and hidden: the file says who is there and how fast")
        if self.names and len(self.names) != len(self.machines):
            raise ConfigError(f"{len(self.names)} names do not fit {len(self.machines)} machines")

    def __len__(self) -> int:
        return len(self.machines)

    @property
    def speeds(self) -> tuple[float, ...]:
        """Samples a second of each machine, while it is there and visible; the most that a trace gives it."""
        found = [machine.speed for machine in self.machines]
        for change in self.trace:
            if change.event == "speed":
                found[change.worker] = max(found[change.worker], change.value)
        return tuple(found)

    @property
    def total(self) -> float:
        """Samples a second of all machines together, when all are there and visible."""
        return math.fsum(self.speeds)

    @property
    def best(self) -> float:
        """Samples a second of the fastest machine."""
        return max(self.speeds)

    def describe(self) -> dict[str, Any]:
        """A few numbers for a results file, ready for JSON; `msgspec.to_builtins` gives every machine instead."""
        speeds = sorted(self.speeds)
        first = self.machines[0]
        return {
            "machines": len(speeds),
            "total": self.total,
            "fastest": speeds[-1],
            "median": speeds[len(speeds) // 2],
            "slowest": speeds[0],
            "up": first.up if first.up < math.inf else None,
            "down": first.down if first.down < math.inf else None,
            "latency": first.latency,
            **{name: getattr(self, name) for name in ("churn", "session", "crash", "hidden", "slowdown")},
            **{name: getattr(self, name) for name in ("lost", "duplicated", "seed")},
            "trace": len(self.trace),
        }


def fleet(
    n: int = 0,
    *,
    spread: float = 1.0,
    speed: float = 1000.0,
    speeds: Sequence[float] | None = None,
    churn: float = 0.0,
    session: float = 60.0,
    crash: float = 0.5,
    bandwidth: tuple[float, float] | None = None,
    latency: float = 0.0,
    hidden: float = 0.0,
    slowdown: float = 10.0,
    lost: float = 0.0,
    duplicated: float = 0.0,
    trace: str | Path | None = None,
    seed: int = 0,
) -> Fleet:
    """A fleet of `n` machines.

    Args:
        n: how many; may be left out where `speeds` or `trace` says it.
        spread: the fastest machine's speed over the slowest one's; speeds in between are log-normal.
        speed: of the fastest, in samples a second.
        speeds: the speed of each machine instead, in samples a second.
        churn: the part of the time that a worker is away.
        session: mean seconds between a worker's arrival and its departure.
        crash: the part of the departures without a word.
        bandwidth: bits a second (up, down) of every machine; None makes transfers free.
        latency: seconds that a message takes each way.
        hidden: the part of the time that a browser tab is hidden.
        slowdown: how many times slower it then is.
        lost: the part of the answers that never arrive.
        duplicated: the part of the answers that arrive twice.
        trace: a CSV file that says who is there when, and how fast; see this module's first lines.
        seed: of all chance in the fleet.

    Raises:
        ConfigError: such a fleet cannot be, or the trace cannot be read.
    """
    try:
        up, down = bandwidth or (math.inf, math.inf)
    except TypeError:
        raise ConfigError(f"bandwidth is two numbers, bits a second up and down, not {bandwidth!r}") from None
    names: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    if trace is not None:
        if speeds is not None or (spread, speed) != (1, 1000):
            raise ConfigError("with a trace leave out speed, speeds and spread: the file says how fast each worker is")
        names, speeds, changes = read_trace(Path(trace))
    elif speeds is None:
        speeds = lognormal(n, spread, speed, seed)
    if n and n != len(speeds):
        raise ConfigError(f"n is {n}, but there are {len(speeds)} speeds: leave n out, or make them agree")
    return Fleet(
        machines=tuple(Machine(float(value), up, down, latency) for value in speeds),
        churn=churn,
        session=session,
        crash=crash,
        hidden=hidden,
        slowdown=slowdown,
        lost=lost,
        duplicated=duplicated,
        seed=seed,
        names=names,
        trace=changes,
    )


def lognormal(n: int, spread: float, speed: float, seed: int) -> list[float]:
    """Log-normal speeds, stretched so that the fastest is `speed` and the slowest `speed / spread`."""
    if n < 1:
        raise ConfigError(f"a fleet needs at least one machine, not {n}")
    if not 1 <= spread < math.inf:
        raise ConfigError(f"spread is the fastest machine's speed over the slowest one's: 1 or more, not {spread:g}")
    normal = NormalDist().inv_cdf
    places = [normal(u) for u in uniform(rng.fold(rng.key(seed), SPEED), 0, n).tolist()]
    low, high = min(places), max(places)
    return [speed / spread ** ((high - place) / (high - low) if n > 1 else 0.0) for place in places]


def read_trace(path: Path) -> tuple[tuple[str, ...], list[float], tuple[Change, ...]]:
    """The workers' names, their first speeds, and what happens to them.

    Raises:
        ConfigError: the file, or one of its lines, cannot be read.
    """
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from error
    if not rows or [cell.strip() for cell in rows[0]] != HEADER:
        raise ConfigError(f"{path}, line 1: a trace begins with the line {','.join(HEADER)}")
    workers: dict[str, Traced] = {}
    changes: list[Change] = []
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        try:
            name, time, event, value = parse(row)
            worker = workers.setdefault(name, Traced(len(workers)))
            changes += worker.follow(name, time, event, value)
        except ValueError as error:
            raise ConfigError(f"{path}, line {line}: {error}") from None
    if not any(change.event == "join" for change in changes):
        raise ConfigError(f"{path}: no worker ever joins; add a line such as w0,0,join,1000")
    return tuple(workers), [worker.first for worker in workers.values()], tuple(changes)


@dataclass
class Traced:
    """A worker as far as its trace was read."""

    number: int
    time: float = 0.0
    there: bool = False
    first: float = 0.0
    """Its first speed; 0 while unknown."""
    speed: float = 0.0

    def follow(self, name: str, time: float, event: EventName, value: float) -> list[Change]:
        """What the worker's next line changes; ValueError says what is wrong with it."""
        if time < self.time:
            raise ValueError(f"time goes back from {self.time:g} to {time:g} for {name}")
        self.time = time
        changes = []
        if value and event in ("join", "speed"):
            if self.speed and value != self.speed:
                changes.append(Change(self.number, time, "speed", value))
            self.first = self.first or value
            self.speed = value
        if event != "speed":
            if self.there == (event == "join"):
                raise ValueError(f"{name} cannot {event}: it is {'there already' if self.there else 'not there'}")
            if not self.speed:
                raise ValueError(f"{name} joins without a speed: give it as the value, in samples a second")
            self.there = event == "join"
            changes.append(Change(self.number, time, event))
        return changes


def parse(row: list[str]) -> tuple[str, float, EventName, float]:
    """The cells of one line of a trace; ValueError says what is wrong."""
    if len(row) not in (3, 4):
        raise ValueError(f"{len(row)} columns; there should be {','.join(HEADER)}")
    name, when, event, given = (cell.strip() for cell in [*row, ""][:4])
    if not name:
        raise ValueError("the worker has no name")
    if event not in EVENTS:
        raise ValueError(f"no event {event!r}{did_you_mean(event, EVENTS)}; there are {', '.join(EVENTS)}")
    try:
        time, value = float(when), float(given or 0)
    except ValueError:
        raise ValueError(f"time and value must be numbers, not {when!r} and {given!r}") from None
    if not 0 <= time < math.inf:
        raise ValueError(f"time must be 0 or more seconds, not {when}")
    if (given or event == "speed") and event in ("join", "speed") and not 0 < value < math.inf:
        raise ValueError(f"a speed must be above 0 samples a second, not {given or 'nothing'}")
    return name, time, event, value


def uniform(key: rng.Key, start: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Elements of a stream as float64 in the open interval (0, 1)."""
    return ((rng.bits(key, start, count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
