"""A model's tensors as one flat vector, and the layout that names its parts.

Merging, clipping, norms and checkpoints are then a few vectorised lines that read like the paper they come from.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainpool.errors import MessageError

__all__ = ["Layout", "Role", "TensorSpec", "Vector", "chunks", "norm", "square"]

Vector: TypeAlias = NDArray[Any]
"""A flat array: float32 in training; float64 is kept where a caller passes it, as exact tests do."""

Role: TypeAlias = Literal["parameter", "running-mean", "running-var", "counter", "other"]
"""What a tensor is. Only a `parameter` meets momentum, duals or outlier rules; running means and variances merge by
the law of total variance, counters by maximum; any `other` buffer is the one of the shard with the most samples."""

CHUNK = 32_768
"""Elements a merge handles at a time: 128 kB of float32 an array, so that temporaries stay in the cache."""


ROW = 8192
"""Elements of an inner product: so few that no BLAS splits them among threads, whose number would change the bits."""


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor of a model: where it lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """The index of its first element in the flat vector."""
    role: Role = "parameter"

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


class Layout(msgspec.Struct, frozen=True):
    """The order of a model's tensors in its flat vector: all parameters first, then the buffers."""

    tensors: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, tuple[tuple[int, ...], Role]]) -> "Layout":
        """The layout of named shapes and roles; parameters come first, otherwise the given order stays."""
        ordered = sorted(tensors.items(), key=lambda item: item[1][1] != "parameter")
        specs, offset = [], 0
        for name, (shape, role) in ordered:
            specs.append(TensorSpec(name, tuple(shape), offset, role))
            offset += specs[-1].size
        return cls(tuple(specs))

    @property
    def size(self) -> int:
        """Elements of the whole vector: parameters and buffers."""
        return sum(spec.size for spec in self.tensors)

    @property
    def trainable(self) -> int:
        """Elements of the leading part that holds the parameters."""
        return sum(spec.size for spec in self.tensors if spec.role == "parameter")

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Named views of a flat vector, in the tensors' shapes; they share its memory.

        Raises:
            MessageError: the vector is not flat or has another length than the layout.
        """
        if vector.shape != (self.size,):
            raise MessageError(f"a vector of shape {vector.shape} does not fit a layout of {self.size} elements")
        return {spec.name: vector[spec.offset : spec.offset + spec.size].reshape(spec.shape) for spec in self.tensors}


def chunks(size: int) -> Iterator[slice]:
    """Consecutive slices that cover `range(size)`, each small enough for the processor's cache."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


def square(vector: Vector) -> float:
    """‖vector‖², each row of `ROW` elements in the vector's own type, their sum in float64."""
    rows = vector[: vector.size // ROW * ROW].reshape(-1, ROW)
    tail = vector[rows.size :]
    return math.fsum([*np.vecdot(rows, rows).tolist(), float(np.vecdot(tail, tail))])


def norm(vector: Vector) -> float:
    """The Euclidean norm; NaN or infinite where an element is, or where its square overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(square(vector))
