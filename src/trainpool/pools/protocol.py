"""What a pool is: it carries the coordinator's commands to workers, and their events back."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np

from trainpool.events import Event, Send
from trainpool.kernels.protocol import Calibration, Evaluation
from trainpool.messages import ShardId
from trainpool.vector import Layout, Vector

__all__ = ["Arrival", "Conditions", "Evaluated", "Job", "Message", "Pool"]


@dataclass(frozen=True)
class Job:
    """What every worker of a run needs, whatever its tasks."""

    layout: Layout
    dtype: np.dtype[Any]
    """Of the flat vectors."""
    program: Path
    """The author's model, loss and preprocessing: a file that PyTorch's kernel reads, or a lowered program's folder."""
    shards: Path
    """The folder of the shard files."""
    test: ShardId | None
    """The shard that models are evaluated on."""
    calibration: Calibration | None
    """How BatchNorm's statistics are measured anew before each evaluation; None where the merged ones serve."""
    log: Path
    """Where workers write what they print."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """An event for the coordinator, with the arrays of a `Returned`: views, valid until the worker's next task."""

    event: Event
    delta: Vector | None = None
    buffers: Vector | None = None


@dataclass(frozen=True)
class Evaluated:
    """The evaluation that was asked for."""

    result: Evaluation
    buffers: Vector | None = None
    """The evaluated model's buffers `[size - trainable]`, where they were measured anew."""


Message: TypeAlias = Arrival | Evaluated


@dataclass(frozen=True)
class Conditions:
    """What a pool's machines are like, as far as that is known before they begin: what `auto` chooses by."""

    speeds: tuple[float, ...]
    """Of each machine: samples a second, or numbers in that proportion where only this is known."""
    travel: tuple[float, float] = (0.0, 0.0)
    """What it takes a task to reach a machine and its answer to come back, in steps of the fastest machine: for each
    byte of the model, and besides."""


class Pool(Protocol):
    """Where workers run. A pool sends `Joined` and `Asked` for each worker on its own."""

    workers: int
    """How many there are, or are expected."""
    virtual: bool
    """Whether its time is simulated: it then sends `Tick` itself, and a run on it cannot be continued."""

    def conditions(self, batch: int) -> Conditions:
        """What the machines are like, for steps of so many samples."""

    def open(self, job: Job) -> None:
        """Start the workers. Raises RunError where that is impossible."""

    def poll(self, timeout: float, alarm: float = math.inf) -> list[Message]:
        """What happened; waits at most `timeout` seconds for something.

        Virtual time goes no further than `alarm`: if nothing happens before, a `Tick` does then.
        """

    def send(self, command: Send) -> None:
        """Give a worker its task; the arrays are copied before this returns."""

    def restart(self, worker: str) -> None:
        """End a worker that does not answer, and put another in its place, where the pool can; it says `Left` then."""

    def evaluate(self, vector: Vector) -> bool:
        """Begin to evaluate a model; False, and nothing done, while too much is under way. Results keep the order."""

    def close(self) -> None:
        """End all workers. May be called twice."""

    def now(self) -> float:
        """Seconds on the pool's clock, never decreasing."""
