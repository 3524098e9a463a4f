"""One machine of a simulated pool: what becomes of it, what it is at, and what it did so far."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainpool.events import WorkerId
from trainpool.pools.availability import Pieces, Session
from trainpool.pools.fleet import Machine
from trainpool.pools.protocol import Arrival
from trainpool.pools.usage import Usage

__all__ = ["Host", "usage"]


@dataclass(slots=True, eq=False)
class Host:
    """A machine in virtual time."""

    number: int
    """Its place in the fleet."""
    name: WorkerId
    asks: Arrival
    """What it says when it is idle."""
    machine: Machine
    speed: Pieces
    sessions: Iterator[Session]
    luck: Iterator[float] | None
    stay: Session | None
    """Its next stay."""

    leaves: float = math.inf
    """When it departs, while it is there."""
    silent: bool = False
    """Whether it then crashes."""
    staying: bool = False
    """Whether it says goodbye only after the answer that it is about to send."""
    held: bool = False
    """Whether the coordinator, for all it knows, is owed an answer."""

    arrived: float | None = None
    """When it came; None while it is away."""
    since: float | None = None
    """When it began to wait for a task; None while it does not."""
    doing: tuple[float, float, float] | None = None
    """The last computing that it began: begin, end, samples."""
    samples: float = 0.0
    """Computed when that ends."""
    busy: float = 0.0
    """Seconds in which it has computed when that ends."""
    waiting: float = 0.0
    """Seconds in which it was there and had no task."""
    there: float = 0.0
    """Seconds in which it was there."""

    def rouse(self, now: float) -> None:
        """It waits no longer."""
        if self.since is not None:
            if self.since < now:
                self.waiting += now - self.since
            self.since = None

    def compute(self, begin: float, end: float, samples: float) -> None:
        """It computes."""
        self.doing = begin, end, samples
        self.busy += end - begin
        self.samples += samples

    def leave(self, now: float) -> None:
        """It goes."""
        self.rouse(now)
        assert self.arrived is not None
        self.there += now - self.arrived
        self.arrived = None


def usage(hosts: Sequence[Host], now: float, up: int, down: int) -> Usage:
    """What the machines did, with what they are at; bytes went `up` to the coordinator and `down` to them."""
    samples, busy = [], []
    for host in hosts:
        begin, end, computed = host.doing or (now, now, 0.0)
        left = (end - max(begin, now)) / (end - begin) if end > now else 0.0
        samples.append(host.samples - left * computed)
        busy.append(host.busy - left * (end - begin))
    return Usage(
        seconds=now,
        samples=math.fsum(samples),
        busy=tuple(busy),
        waiting=tuple(host.waiting + (0.0 if host.since is None else now - host.since) for host in hosts),
        there=tuple(host.there + (0.0 if host.arrived is None else now - host.arrived) for host in hosts),
        up=up,
        down=down,
    )
