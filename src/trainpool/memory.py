"""What a coordinator remembers, beside the strategy's own state: saved and restored as a whole."""

from dataclasses import dataclass, field

import msgspec

from trainpool.admission import Admission
from trainpool.events import WorkerId
from trainpool.messages import ShardId, Task
from trainpool.pace import Pace
from trainpool.statistics import Statistics
from trainpool.vector import Vector

__all__ = ["Base", "Lease", "Ledger", "Memory"]


class Lease(msgspec.Struct, eq=False, gc=False):
    """A task given to a worker."""

    task: Task
    worker: WorkerId
    since: float
    deadline: float
    """When its answer is overdue, and its unit offered again."""
    limit: int | None = None
    """The staleness above which its answer is refused."""
    rebased: bool = False
    """Whether its update needs the parameters that it carried."""
    overdue: bool = False


@dataclass(slots=True)
class Ledger:
    """What became of one shard's work units. leased = accepted + rejected + failed + lost + those still out."""

    steps: int = 0
    """Merged steps."""
    samples: int = 0
    """Merged samples: the offset of the next unit."""
    leased: int = 0
    accepted: int = 0
    rejected: int = 0
    """Not admitted, too stale, or answered after another worker's answer to the same unit."""
    failed: int = 0
    """The worker said that it could not."""
    lost: int = 0
    """The worker left, or the coordinator restarted."""
    overdue: int = 0
    """Leases that passed their deadline; each also ends in one of the ways above."""


@dataclass
class Base:
    """Parameters of one version, kept for the updates that will need them."""

    parameters: Vector
    users: int = 0
    """Leases that do."""


@dataclass
class Memory:
    """Everything that evolves, beside the strategy's own state: it is saved and restored as a whole."""

    ledger: dict[ShardId, Ledger]
    statistics: Statistics
    admission: Admission
    pace: Pace
    leases: dict[int, Lease] = field(default_factory=dict)
    workers: dict[WorkerId, None] = field(default_factory=dict)
    """Those that are there."""
    idle: dict[WorkerId, None] = field(default_factory=dict)
    """Those of them that asked and have no task, the longest idle first."""
    silent: dict[WorkerId, None] = field(default_factory=dict)
    """Those of them whose answer is late."""
    bases: dict[int, Base] = field(default_factory=dict)
    """Parameters that tasks still out carried, by version, where their updates need them."""
    next_task: int = 0
    session: int = 0
    """How often the coordinator was restarted: part of every task's number, so that none is used twice."""
    misses: dict[WorkerId, int] = field(default_factory=dict)
    """Each worker's failed or rejected answers since the last accepted one of any."""
    samples: int = 0
    """Merged."""
    rejected: int = 0
    """Answers that were refused for what they held, or as too stale."""
    gathered: int = 0
    """Updates merged since the version last changed, or the coordinator restarted: those of the round under way."""
    copies: int = 0
    """Leases of a unit that another worker was late with."""
    loss: float = 0.0
    """A moving mean of the training loss."""
    staleness: int = 0
    """Sum over accepted updates."""
    updates: int = 0
    """Accepted updates."""
    bytes_down: int = 0
    """Of the arrays sent to workers."""
    bytes_up: int = 0
    """Of the arrays that workers returned."""
    done: bool = False
