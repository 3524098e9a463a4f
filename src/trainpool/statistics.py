"""Merging what is not a parameter: running means and variances, counters, other buffers.

The mean of the shards' running variances misses the variance between their means. The law of total variance does not:

    mean = Σ w_i mean_i          var = Σ w_i var_i + Σ w_i (mean_i - mean)²          w_i = n_i / Σ n

Exact for statistics of each shard's samples. BatchNorm's running ones are moving averages over batches: close to that
after tasks of some tens of steps, which is what its momentum of 0.1 remembers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from trainpool.messages import ShardId
from trainpool.vector import Layout, TensorSpec, Vector

__all__ = ["Reported", "Statistics", "flaw", "pooled"]


@dataclass(frozen=True)
class Reported:
    """A shard's buffers at the end of its task."""

    samples: int
    buffers: Vector
    """`[size - trainable]`."""


def blocks(layout: Layout) -> Iterator[tuple[TensorSpec, slice]]:
    """The tensors that are no parameters, and where each lies among the buffers."""
    for spec in layout.tensors:
        if spec.role != "parameter":
            start = spec.offset - layout.trainable
            yield spec, slice(start, start + spec.size)


def pooled(layout: Layout, reports: Mapping[ShardId, Reported]) -> Vector:
    """The buffers of one model from those of several: `[size - trainable]`.

    Running variances are pooled with the running mean that stands before them in the layout, as BatchNorm's does.
    Counters merge by maximum. Any other buffer is taken from the shard with the most samples.
    """
    ordered = [reports[shard] for shard in sorted(reports)]  # a fixed order, so that arrival does not change bits
    samples = np.array([item.samples for item in ordered], np.float64)
    weights = samples / samples.sum()
    stacked = np.stack([item.buffers for item in ordered]).astype(np.float64)
    result = np.empty(stacked.shape[1])
    mean, spread = slice(0, 0), np.zeros(0)
    for spec, place in blocks(layout):
        block = stacked[:, place]
        match spec.role:
            case "running-mean":
                mean = place
                result[place] = weights @ block
                spread = weights @ (block - result[mean]) ** 2
            case "running-var":
                result[place] = weights @ block + (spread if spread.size == spec.size else 0)
                spread = np.zeros(0)
            case "counter":
                result[place] = block.max(axis=0)
            case _:
                result[place] = block[int(samples.argmax())]
    return result.astype(ordered[0].buffers.dtype)


def flaw(layout: Layout, buffers: Vector, known: Vector) -> str | None:
    """Why buffers `[size - trainable]` cannot be merged, or None where they can.

    All must be finite, but for what is as infinite in the model's own, `known`; variances not negative; and means and
    variances so small that a variance pooled of them is finite too.
    """
    most = float(np.finfo(buffers.dtype).max)
    for spec, place in blocks(layout):
        block = buffers[place]
        match spec.role:
            case "running-mean":
                good = np.abs(block) <= most**0.5 / 4
            case "running-var":
                good = (block >= 0) & (block <= most / 4)
            case _:
                good = np.isfinite(block) | (block == known[place])
        if not good.all():
            return f"its buffer {spec.name} has elements that are NaN, infinite or out of range"
    return None


@dataclass
class Statistics:
    """The model's buffers: pooled over the updates that started from the newest version seen.

    In a synchronous method those are the round's, and the pooling is exact; in an asynchronous one it is the update
    that knows the newest parameters.
    """

    buffers: Vector
    version: int = -1
    reports: dict[ShardId, Reported] = field(default_factory=dict)
    start: Vector | None = None
    """The buffers before the first of these reports."""

    def sent(self, version: int) -> Vector:
        """The buffers that a task of this version begins with: the same for all of a round, whenever each is sent."""
        return self.start if self.start is not None and version == self.version else self.buffers

    def merge(self, layout: Layout, version: int, shard: ShardId, samples: int, buffers: Vector) -> None:
        """Take in one admitted update's buffers."""
        if version < self.version:
            return
        if version > self.version:
            self.version, self.reports, self.start = version, {}, self.buffers
        self.reports[shard] = Reported(samples, buffers.copy())
        self.buffers = pooled(layout, self.reports)
