"""Counter-based random numbers: the same bits in NumPy, in ONNX Runtime's host and in a browser.

Threefry-2x32 with 20 rounds: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
It needs 32-bit additions, rotations and exclusive-ors alone, which JavaScript has, and any element of a stream can be
computed without the ones before it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Key", "batches", "bits", "derive", "derive_each", "fold", "key", "noise", "permutation", "uniform"]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # Threefish's key-schedule constant, truncated to 32 bits
ORDER = 1  # the purpose tag of batch order
NOISE = 2  # the purpose tag of dropout and augmentation

Words = NDArray[np.uint32]


class Key(NamedTuple):
    """A stream's identity: two unsigned 32-bit words."""

    k0: int
    k1: int


def threefry(k: Key, c0: Words, c1: Words) -> tuple[Words, Words]:
    """Threefry-2x32-20 of the counters `(c0, c1)`, two uint32 arrays of one shape, under the key `k`."""
    words = (k.k0, k.k1, k.k0 ^ k.k1 ^ PARITY)
    x0, x1 = c0 + np.uint32(words[0]), c1 + np.uint32(words[1])
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 += x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 ^= x0
        x0 += np.uint32(words[(group + 1) % 3])
        x1 += np.uint32((words[(group + 2) % 3] + group + 1) & 0xFFFFFFFF)
    return x0, x1


def key(seed: int) -> Key:
    """The key of a seed (its low 64 bits)."""
    return Key(seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)


def fold(k: Key, data: int) -> Key:
    """A new key from a key and an integer (its low 64 bits): independent streams for independent purposes."""
    low, high = key(data)
    x0, x1 = threefry(k, np.array([low], np.uint32), np.array([high], np.uint32))
    return Key(int(x0[0]), int(x1[0]))


def derive(seed: int, *data: int) -> int:
    """A seed from a seed and integers, below 2**53 so that JSON carries it exactly to JavaScript."""
    k = key(seed)
    for item in data:
        k = fold(k, item)
    return (k.k0 & 0x1FFFFF) << 32 | k.k1


def derive_each(seed: int, data: Sequence[int]) -> list[int]:
    """`derive(seed, item)` of every item, at once."""
    numbers = np.array([item & 0xFFFFFFFFFFFFFFFF for item in data], np.uint64)
    low, high = numbers.astype(np.uint32), (numbers >> np.uint64(32)).astype(np.uint32)
    x0, x1 = threefry(key(seed), low, high)
    found = (x0 & np.uint32(0x1FFFFF)).astype(np.uint64) << np.uint64(32) | x1
    return [int(item) for item in found]


def bits(k: Key, start: int, count: int) -> NDArray[np.uint64]:
    """Elements `start` to `start + count - 1` of the stream: uint64 `[count]`."""
    position = np.arange(start, start + count, dtype=np.uint64)
    c0, c1 = position.astype(np.uint32), (position >> np.uint64(32)).astype(np.uint32)
    x0, x1 = threefry(k, c0, c1)
    return (x0.astype(np.uint64) << np.uint64(32)) | x1.astype(np.uint64)


def uniform(k: Key, start: int, count: int) -> NDArray[np.float32]:
    """Elements of the stream as float32 `[count]` in [0, 1), on the grid of multiples of 2**-24."""
    return (bits(k, start, count) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def noise(seed: int, number: int, offset: int, count: int) -> NDArray[np.float32]:
    """The uniform numbers of one training step: float32 `[count]` in [0, 1).

    `number` is which of a step's random operators asks, in the order of their calls; `offset` is how many samples of
    the shard's sequence were taken before the step. The same task has the same noise on every kernel.
    """
    return uniform(fold(fold(fold(key(seed), NOISE), number), offset), 0, count)


def permutation(k: Key, n: int) -> NDArray[np.int64]:
    """A permutation of `0..n-1`: the stable order of the stream's first n elements."""
    return np.argsort(bits(k, 0, n), kind="stable").astype(np.int64)


def batches(seed: int, samples: int, offset: int, steps: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """The row numbers of each of `steps` batches of `batch` samples, int64 `[batch]` each.

    A shard of `samples` rows is read in passes, each pass in a permutation of its own; `offset` is how many samples
    earlier tasks took from this sequence. Tasks with successive offsets therefore visit every row exactly once a pass.
    """
    stream = fold(key(seed), ORDER)
    position, current, order = offset, -1, np.empty(0, np.int64)
    for _ in range(steps):
        parts: list[NDArray[np.int64]] = []
        missing = batch
        while missing:
            number, start = divmod(position, samples)
            if number != current:
                current, order = number, permutation(fold(stream, number), samples)
            parts.append(order[start : start + missing])
            position += parts[-1].size
            missing -= parts[-1].size
        yield parts[0] if len(parts) == 1 else np.concatenate(parts)
