"""The simulated machines that a comparison asks about: a frozen value, from which a fleet is made."""

import dataclasses
import hashlib
from pathlib import Path

import msgspec

from trainpool.pools.fleet import Fleet, Machine, fleet

__all__ = ["Machines", "digest"]


class Machines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The simulated machines; see `trainpool.pools.fleet.fleet`."""

    workers: int = 16
    """How many; 0 where a trace says it."""
    spread: float = 8.0
    """The fastest machine's speed over the slowest one's."""
    speed: float = 1000.0
    """Samples a second of the fastest."""
    churn: float = 0.0
    """The part of the time that a worker is away, 0 to below 1."""
    session: float = 60.0
    """Mean seconds of a stay, where there is churn."""
    crash: float = 0.5
    """The part of the departures without a word."""
    bandwidth: tuple[float, float] | None = None
    """Bits a second of every machine, up and down; None makes transfers free."""
    latency: float = 0.0
    """Seconds that a message takes besides."""
    hidden: float = 0.0
    """The part of the time that a browser tab is hidden and slower."""
    slowdown: float = 10.0
    """How many times slower."""
    lost: float = 0.0
    """The part of the answers that never arrive."""
    duplicated: float = 0.0
    """The part of the answers that arrive twice."""
    trace: str = ""
    """A CSV file of who is there when, and how fast."""
    trace_hash: str = ""
    """The SHA-256 of that file; found where left out."""
    seed: int = 0
    """Of the machines' speeds, and of all chance together with a trial's seed."""

    def __post_init__(self) -> None:
        if self.trace and not self.trace_hash:
            msgspec.structs.force_setattr(self, "trace_hash", digest(self.trace))

    def fleet(self, seed: int = 0) -> Fleet:
        """The machines. Their speeds are always the same; who is away when depends on the trial's `seed` too.

        Raises:
            ConfigError: there can be no such machines.
        """
        own = ("workers", "trace_hash")
        options = {name: value for name, value in msgspec.structs.asdict(self).items() if name not in own}
        made = fleet(self.workers, **(options | {"trace": self.trace or None}))
        return dataclasses.replace(made, seed=self.seed + seed)

    def alone(self) -> Fleet:
        """The fastest machine without the others: it never leaves, and needs no transfers."""
        return Fleet((Machine(self.fleet().best),))


def digest(file: str) -> str:
    """The SHA-256 of a file; empty where there is none."""
    path = Path(file)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
