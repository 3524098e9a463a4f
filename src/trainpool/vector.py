"""A model's tensors as one flat vector, and the layout that names its parts.

Merging, clipping, norms and checkpoints are then a few vectorised lines that read like the paper they come from.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainpool.errors import MessageError

__all__ = ["Layout", "Role", "TensorSpec", "Vector", "add_squares", "chunks", "norm", "rows", "share", "square"]

T = TypeVar("T")

Vector: TypeAlias = NDArray[Any]
"""A flat array: float32 in training; float64 is kept where a caller passes it, as exact tests do."""

Role: TypeAlias = Literal["parameter", "running-mean", "running-var", "counter", "other"]
"""What a tensor is. Only a `parameter` meets momentum, duals or outlier rules; running means and variances merge by
the law of total variance, counters by maximum; any `other` buffer is the one of the shard with the most samples."""

CHUNK = 131_072
"""Elements a merge handles at a time: 512 kB of float32 an array. Smaller ones would stay nearer to the processor, but
each NumPy call takes the interpreter's lock for a moment, which threads must not fight for."""
SHARED = 1_000_000
"""Elements from which on a vector is worth more than one thread."""
THREADS = min(4, os.cpu_count() or 1)
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
        return math.prod(self.shape)


class Layout(msgspec.Struct, frozen=True, dict=True):
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

    @cached_property
    def size(self) -> int:
        """Elements of the whole vector: parameters and buffers."""
        return sum(spec.size for spec in self.tensors)

    @cached_property
    def trainable(self) -> int:
        """Elements of the leading part that holds the parameters."""
        return sum(spec.size for spec in self.tensors if spec.role == "parameter")

    @cached_property
    def shapes(self) -> tuple[tuple[int], tuple[int]]:
        """The shapes of the two parts: parameters, buffers."""
        return (self.trainable,), (self.size - self.trainable,)

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


def share(size: int, work: Callable[[Sequence[slice]], T]) -> list[T]:
    """`work` of all `chunks(size)` in order; of a long vector, in runs of chunks side by side.

    NumPy lets go of the interpreter's lock, and one core alone does not use the memory's bandwidth. Results come in the
    chunks' order. `work` must treat each chunk by itself, so that the number of threads changes no bit.
    """
    if size == 0:
        return []
    parts = list(chunks(size))
    if size < SHARED or THREADS == 1:
        return [work(parts)]
    cuts = [len(parts) * number // THREADS for number in range(THREADS + 1)]
    return list(threads().map(work, (parts[a:b] for a, b in pairwise(cuts))))


@cache
def threads() -> ThreadPoolExecutor:
    """The threads that share the work on long vectors."""
    return ThreadPoolExecutor(THREADS, "trainpool-vector")


def add_squares(vector: Vector, out: Vector) -> None:
    """Add each row's ‖·‖² to the float64 `out` `[rows(size)]`; a row is `ROW` elements, the last one what is left."""
    whole = vector[: vector.size // ROW * ROW].reshape(-1, ROW)
    tail = vector[whole.size :]
    out[: len(whole)] += np.vecdot(whole, whole)
    if tail.size:
        out[len(whole)] += np.vecdot(tail, tail)


def rows(size: int) -> int:
    """How many rows a vector has for `add_squares`."""
    return -(-size // ROW)


def square(vector: Vector) -> float:
    """‖vector‖², each row of `ROW` elements in the vector's own type, their sum in float64."""
    out = np.zeros(rows(vector.size))
    add_squares(vector, out)
    return math.fsum(out.tolist())


def norm(vector: Vector) -> float:
    """The Euclidean norm; NaN or infinite where an element is, or where its square overflows."""
    if vector.size == 0:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(square(vector))
