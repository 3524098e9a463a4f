"""What simulated machines do with their time: computing, waiting, being away; for totals and for a plot."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Kind", "Span", "Usage"]

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
    """Bytes that arrived at the coordinator."""
    down: int
    """Bytes that the coordinator sent."""

    @property
    def utilisation(self) -> float:
        """The part of the machines' time, 0 to 1, in which they computed."""
        return math.fsum(self.busy) / (math.fsum(self.there) or 1.0)
