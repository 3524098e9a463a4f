"""What a kernel is: it runs tasks and evaluates models on one kind of machine."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from trainpool.messages import Report, ShardId, Task
from trainpool.vector import Layout, Vector

__all__ = ["Arrays", "Calibration", "Evaluation", "Kernel", "KernelError"]

Arrays = Mapping[str, np.ndarray[Any, Any]]
"""A shard's samples: `x` `[n, ...]` and `y` `[n, ...]`."""


class Evaluation(msgspec.Struct, frozen=True):
    """A model's performance on a data set."""

    loss: float
    """The mean loss."""
    accuracy: float | None
    """The part of samples whose largest output is their label; None where targets are not labels."""
    samples: int


class Calibration(msgspec.Struct, frozen=True):
    """On which training data BatchNorm's statistics are measured anew before an evaluation.

    Statistics of models before they were averaged are not those of the average: Gu et al. 2024, "A Quadratic
    Synchronization Rule for Distributed Deep Learning", measures them anew, as here, on about 100 batches.
    """

    shards: tuple[ShardId, ...]
    """Where the batches come from, in turn."""
    batches: int
    batch: int
    """Samples a batch."""


class KernelError(Exception):
    """A task that cannot be done: the user's code failed, or its loss is not a number."""


class Kernel(Protocol):
    """Runs tasks. One task gives the same update on every kernel, up to float rounding."""

    layout: Layout

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        """Train. `vector` holds parameters and buffers `[size]`; `out` `[size]` receives the delta and the buffers.

        Raises:
            KernelError: the task cannot be done.
        """

    def evaluate(self, vector: Vector, data: Arrays) -> Evaluation:
        """Measure the model on a data set."""

    def recalibrate(self, vector: Vector, shards: Callable[[ShardId], Arrays], calibration: Calibration) -> Vector:
        """The model's buffers `[size - trainable]`, with BatchNorm's statistics measured anew on training data."""
