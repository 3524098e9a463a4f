"""What simulated machines do with their time: computing, waiting, being away; for totals and for a plot."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Account", "Kind", "Span", "Usage"]

Kind: TypeAlias = Literal["download", "compute", "upload", "away"]


class Span(NamedTuple):
    """What a machine does for a while; noted when it begins, so the last ones may outlast the run."""

    worker: int
    """The machine's number."""
    start: float
    """Seconds of virtual time."""
    end: float
    kind: Kind


@dataclass(frozen=True)
class Usage:
    """What the machines did so far."""

    seconds: float
    """Virtual time."""
    samples: float
    """Computed, with those of answers that were lost, cut off or refused."""
    busy: tuple[float, ...]
    """Seconds in which each machine computed."""
    waiting: tuple[float, ...]
    """Seconds in which each machine was there and had no task."""
    there: tuple[float, ...]
    """Seconds in which each machine was there; what is neither busy nor waiting is transfer."""
    up: int
    """Bytes from the machines to the coordinator."""
    down: int
    """Bytes from the coordinator to the machines."""

    @property
    def utilisation(self) -> float:
        """The part of the machines' time, 0 to 1, in which they computed."""
        return math.fsum(self.busy) / (math.fsum(self.there) or 1.0)


class Account:
    """Keeps the totals. Every method takes the virtual time."""

    def __init__(self, machines: int, room: int) -> None:
        """`room` is how many spans are kept, the first ones."""
        self.room = room
        self.spans: list[Span] = []
        self.doing: list[tuple[float, float, float] | None] = [None] * machines
        """Each machine's computing under way: begin, end, samples."""
        self.arrived: list[float | None] = [None] * machines
        """When each machine came; None while it is away."""
        self.since: list[float | None] = [None] * machines
        """When each machine began to wait for a task; None while it does not."""
        self.resting = 0
        """Machines that wait."""
        self.busy, self.waiting, self.there = [0.0] * machines, [0.0] * machines, [0.0] * machines
        self.samples = 0.0
        self.up = self.down = 0

    def begin(self, machine: int, now: float, begin: float, stop: float, end: float, computed: float) -> None:
        """A machine takes a task: it computes from `begin` to `stop`, where it gets so far, and sends until `end`."""
        if begin < stop:
            self.doing[machine] = (begin, stop, computed)
        if self.room:
            self.note(machine, now, min(begin, end), "download")
            self.note(machine, begin, stop, "compute")
            self.note(machine, max(begin, stop), end, "upload")

    def note(self, machine: int, start: float, end: float, kind: Kind) -> None:
        """Keep a span, while there is room."""
        if start < end and len(self.spans) < self.room:
            self.spans.append(Span(machine, start, end, kind))

    def rest(self, machine: int, now: float) -> None:
        """A machine begins to wait."""
        self.since[machine] = now
        self.resting += 1

    def rouse(self, machine: int, now: float) -> None:
        """A machine waits no longer."""
        since = self.since[machine]
        if since is not None:
            self.waiting[machine] += now - since
            self.since[machine] = None
            self.resting -= 1

    def settle(self, machine: int) -> None:
        """A machine's computing has ended."""
        doing = self.doing[machine]
        if doing is not None:
            self.busy[machine] += doing[1] - doing[0]
            self.samples += doing[2]
            self.doing[machine] = None

    def leave(self, machine: int, now: float) -> None:
        """A machine goes."""
        self.settle(machine)
        self.rouse(machine, now)
        arrived = self.arrived[machine]
        assert arrived is not None
        self.there[machine] += now - arrived
        self.arrived[machine] = None

    def usage(self, now: float) -> Usage:
        """The totals, with what the machines are at."""
        busy, samples = self.busy.copy(), self.samples
        for machine, doing in enumerate(self.doing):
            if doing is not None and doing[0] < now:
                begin, end, computed = doing
                part = min(1.0, (now - begin) / (end - begin))
                busy[machine] += part * (end - begin)
                samples += part * computed
        return Usage(
            now,
            samples,
            tuple(busy),
            so_far(self.waiting, self.since, now),
            so_far(self.there, self.arrived, now),
            self.up,
            self.down,
        )


def so_far(totals: list[float], since: list[float | None], now: float) -> tuple[float, ...]:
    """Totals with what is going on since then."""
    return tuple(total + (0.0 if start is None else now - start) for total, start in zip(totals, since, strict=True))
