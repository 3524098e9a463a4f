"""Where samples come from: arrays, map-style data sets, folders of images. A source is read a shard at a time."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainpool.data.images import ImageFolderSource, pixels
from trainpool.errors import DataError

__all__ = ["ArraySource", "DatasetSource", "Source", "as_source"]

Indices = NDArray[np.int64]

MOST_CLASSES = 1_000_000
"""Larger integer targets are taken for a mistake: counts per class are kept for every shard."""


class Source(Protocol):
    """Samples that can be gathered in any order."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def fingerprint(self) -> str | None:
        """Changes whenever the content does, and is cheap to know; None if unknown, and then every run reads it all."""

    @property
    def classes(self) -> int:
        """How many classes the labels have; 0 where targets are not class labels."""

    def __len__(self) -> int:
        """The number of samples."""

    def labels(self) -> Indices | None:
        """Every sample's class, int64 `[samples]`; None where targets are not class labels."""

    def gather(self, indices: Indices) -> tuple[NDArray[Any], NDArray[Any]]:
        """The samples `x` `[n, ...]` and targets `y` `[n]` or `[n, ...]` at `indices` `[n]`."""


class ArraySource:
    """Arrays, or tensors, in memory: `x` `[samples, ...]` and `y` `[samples]` or `[samples, ...]`.

    One-dimensional integer `y` are class labels, from 0 to `classes` - 1 (by default the largest label counts);
    everything else is a target for regression.

    Raises:
        DataError: not arrays, of unequal length, empty, or with labels below 0 or beyond `classes`.
    """

    def __init__(
        self, x: Any, y: Any, name: str = "data", *, classes: int | None = None, fingerprint: str | None = None
    ) -> None:
        self.name = name
        self.x, self.y = array(x, f"x of {name}"), array(y, f"y of {name}")
        if self.x.ndim == 0 or self.y.ndim == 0:
            raise DataError(f"{name}: x and y must be arrays of samples, not single numbers")
        if len(self.x) != len(self.y):
            raise DataError(f"{name}: x has {len(self.x)} samples and y has {len(self.y)}; they must have equally many")
        if len(self.x) == 0:
            raise DataError(f"{name} is empty: at least one sample is needed")
        self.is_labels = self.y.ndim == 1 and self.y.dtype.kind in "iub"
        self.classes = count_classes(self.y, name, classes) if self.is_labels else 0
        self.known = fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the contents."""
        if self.known is not None:
            return self.known
        digest = hashlib.sha256(str(self.classes).encode())
        for part in (self.x, self.y):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            for start in range(0, len(part), 4096):  # a memory-mapped array is not read at once
                digest.update(part[start : start + 4096].tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.x)

    def labels(self) -> Indices | None:
        """See `Source.labels`."""
        return self.y.astype(np.int64) if self.is_labels else None

    def gather(self, indices: Indices) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `Source.gather`."""
        return self.x[indices], self.y[indices]


class DatasetSource:
    """A map-style data set: `dataset[i]` is `(x, y)`, with x an array, a tensor or a PIL image (uint8 `[C, H, W]`).

    Every item is read once, and a second time only where labels are needed before the cut. What the data set draws at
    random is therefore fixed by the cut: augmentation belongs into the preprocessing.

    Raises:
        DataError: (from every method) an item cannot be read or differs from the others; its index is named.
    """

    def __init__(self, dataset: Any, name: str = "data set", *, fingerprint: str | None = None) -> None:
        self.dataset, self.name, self.fingerprint = dataset, name, fingerprint
        if len(dataset) == 0:
            raise DataError(f"{name} is empty: at least one sample is needed")
        self.targets = np.zeros(len(dataset), np.int64)
        self.seen = np.zeros(len(dataset), np.bool_)

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def is_labels(self) -> bool:
        """Whether targets are class labels: the first one is a single integer."""
        if not self.seen.any():
            self.item(0)
        return bool(self.seen.any())

    @cached_property
    def classes(self) -> int:
        """See `Source.classes`; reads what was not gathered yet."""
        labels = self.labels()
        return 0 if labels is None else count_classes(labels, self.name)

    def labels(self) -> Indices | None:
        """See `Source.labels`; reads what was not gathered yet."""
        if not self.is_labels:
            return None
        for index in np.flatnonzero(~self.seen):
            self.item(int(index))
        return self.targets

    def gather(self, indices: Indices) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `Source.gather`."""
        x, y = self.item(int(indices[0]))
        xs, ys = np.empty((len(indices), *x.shape), x.dtype), np.empty((len(indices), *y.shape), y.dtype)
        for row, index in enumerate(indices):
            xi, yi = (x, y) if row == 0 else self.item(int(index))
            for kind, part, first in (("x", xi, x), ("y", yi, y)):
                if part.shape != first.shape or part.dtype != first.dtype:
                    raise DataError(
                        f"item {index} of {self.name}: its {kind} is {part.dtype} {part.shape}, but that of item "
                        f"{indices[0]} is {first.dtype} {first.shape}; all samples must have one shape and type"
                    )
            xs[row], ys[row] = xi, yi
        return xs, ys

    def item(self, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """One sample as arrays; its label is remembered."""
        place = f"item {index} of {self.name}"
        try:
            pair = self.dataset[index]
        except Exception as error:  # the data set is the author's code
            text = " ".join(str(error).split())
            raise DataError(f"{place} could not be read: {type(error).__name__}: {text}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{place} must be a pair (x, y), not {describe(pair)}")
        x, y = array(pair[0], f"x of {place}"), array(pair[1], f"y of {place}")
        if y.ndim == 0 and y.dtype.kind in "iub":
            self.targets[index], self.seen[index] = y, True
        return x, y


def as_source(data: Any, name: str = "data") -> Source:
    """A source of whatever holds samples.

    Raises:
        DataError: it is none of the accepted kinds, or is one and has a fault.
    """
    if all(callable(getattr(data, method, None)) for method in ("labels", "gather", "__len__")):
        source: Source = data
        return source
    if isinstance(data, str | Path):
        return ImageFolderSource(data)
    if isinstance(data, tuple) and len(data) == 2:
        return ArraySource(*data, name=name)
    alone = isinstance(data, np.ndarray | tuple | dict) or hasattr(data, "detach")  # indexable, but not by samples
    if not alone and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetSource(data, name)
    raise DataError(
        f"{name}: {describe(data)} is no data set; give (x, y) arrays or tensors, a map-style data set of (x, y), "
        f"a folder of images class/name.png, or a trainpool Source"
    )


def array(value: Any, place: str) -> NDArray[Any]:
    """A number, array, tensor or PIL image as an array.

    Raises:
        DataError: it is something else; `place` says where.
    """
    try:
        if hasattr(value, "detach"):  # a tensor, without importing torch
            result: NDArray[Any] = value.detach().cpu().numpy()
        elif hasattr(value, "getbands"):  # a PIL image, without importing Pillow
            result = pixels(value)
        else:
            result = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{place} cannot become an array: {error}") from error
    if result.dtype.kind not in "iufb":
        raise DataError(f"{place} must be numbers or a PIL image, not {describe(value)}")
    return result


def count_classes(labels: NDArray[Any], name: str, classes: int | None = None) -> int:
    """How many classes there are: `classes`, or one more than the largest label.

    Raises:
        DataError: a label lies outside.
    """
    low, high = int(labels.min()), int(labels.max())
    most = MOST_CLASSES if classes is None else classes
    if low < 0 or high >= most:
        end = "" if classes is None else f" to {classes - 1}"
        raise DataError(
            f"{name}: labels run from {low} to {high}; classes must be numbered from 0{end}: "
            f"renumber them, or make y floating-point where it is not a class"
        )
    return high + 1 if classes is None else classes


def describe(value: Any) -> str:
    """A value's type in words."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of type {value.dtype}"
    return f"an object of type {type(value).__name__}"
