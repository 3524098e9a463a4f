"""Shards: immutable slices of a data set, each named by the SHA-256 of its file, and the manifest that lists them."""

import hashlib
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
from numpy.typing import NDArray

from trainpool import rng, wire
from trainpool.data.sources import Source
from trainpool.errors import ConfigError, DataError, MessageError
from trainpool.messages import ShardId

__all__ = ["Manifest", "Progress", "Shard", "cut", "load", "path_of", "peek"]

Indices = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""

CUT, SKEW = 0x637574, 0x736B6577  # purpose tags of the random streams: "cut" and "skew" in ASCII


class Shard(msgspec.Struct, frozen=True):
    """One shard of a data set."""

    id: ShardId
    samples: int
    bytes: int
    """Of its file."""
    labels: tuple[int, ...]
    """Samples of each class; empty where targets are not class labels."""


class Manifest(msgspec.Struct, frozen=True):
    """A data set, cut."""

    name: str
    shards: tuple[Shard, ...]
    shape: tuple[int, ...]
    """Of one sample's x."""
    dtype: str
    """NumPy's name of the type of x."""
    classes: int
    """0 where targets are not class labels."""

    @property
    def id(self) -> str:
        """A SHA-256 of everything but the name."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, name=""))).hexdigest()

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


class Header(msgspec.Struct, frozen=True):
    """A shard file's message."""

    copy: int = 0
    """Tells shards of equal content apart: how many of the same data set come before."""


def cut(
    source: Source,
    count: int,
    *,
    folder: Path,
    seed: int,
    skew: float | None = None,
    shuffle: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Cut a source into `count` shards, files `<folder>/<id>.safetensors` with tensors `x` and `y`.

    Sizes differ by at most one. Samples are dealt out by a seeded permutation; without `shuffle`, in the source's own
    order; with `skew`, by `skewed`. `x` keeps its type (images: uint8 `[n, C, H, W]`), but float64 becomes float32;
    `y` is int64 or float32. Only one shard is in memory at a time, and a file that is there is not written again.

    Raises:
        ConfigError: `count` is below 1 or `skew` not above 0.
        DataError: fewer samples than shards, a skew without labels, a sample that is not finite or unlike the others,
            or the folder cannot be written.
    """
    total = len(source)
    if count < 1:
        raise ConfigError(f"the number of shards must be at least 1, not {count}")
    if skew is not None and not 0 < skew < float("inf"):
        raise ConfigError(f"skew must be a number above 0 (smaller is more skewed), not {skew}")
    if count > total:
        raise DataError(f"{source.name} has {total} samples, too few for {count} shards: choose at most {total} shards")
    if skew is not None:
        labels = source.labels()
        if labels is None:
            raise DataError(f"{source.name} has no class labels, which skew needs: leave skew out")
        parts = skewed(labels, count, skew, seed)
    else:
        stream = rng.fold(rng.key(seed), CUT)
        order = rng.permutation(stream, total) if shuffle else np.arange(total, dtype=np.int64)
        parts = iter(np.array_split(order, count))

    files: dict[ShardId, int] = {}
    targets: list[NDArray[Any]] = []
    form: tuple[Any, ...] = ()
    done = 0
    for part in parts:
        # Training permutes a shard's rows anyway, and sources on a disk are read faster in their own order.
        indices = np.sort(part)
        x, y = tidy(*source.gather(indices), source.name, indices)
        if form and form != (x.shape[1:], x.dtype, y.shape[1:], y.dtype):
            raise DataError(
                f"{source.name}: samples {indices[0]} to {indices[-1]} are {x.dtype} {x.shape[1:]} with targets "
                f"{y.dtype} {y.shape[1:]}, unlike those before; all samples must have one shape and type"
            )
        form = (x.shape[1:], x.dtype, y.shape[1:], y.dtype)
        name, size = save(folder, x, y, files)
        files[name] = size
        targets.append(y if y.ndim == 1 and y.dtype == np.int64 else np.empty((len(y), 0)))
        done += len(indices)
        if progress:
            progress(done, total)

    classes = source.classes  # asked for last: some sources know it once they were read
    counts = [count_labels(y, classes, source.name) for y in targets]
    shards = zip(files.items(), targets, counts, strict=True)
    return Manifest(
        source.name,
        tuple(Shard(name, len(y), size, labels) for (name, size), y, labels in shards),
        form[0],
        str(form[1]),
        classes,
    )


def skewed(labels: Indices, count: int, alpha: float, seed: int) -> Iterator[Indices]:
    """Rows `[n]` of each of `count` shards whose label proportions are drawn from a Dirichlet distribution.

    q_i ~ Dirichlet(alpha·p), with p the classes' proportions in the whole data set; shard i draws its n_i samples
    without replacement from classes with probabilities q_i, renormalised over the classes that still have samples.
    Shards are of equal size, to within one. Large alpha is close to iid; alpha → 0 gives one class a shard.
    Where others write Dirichlet(a, …, a) over K balanced classes, their a is alpha/K here.

    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    arXiv:1909.06335, 2019.
    """
    generator = np.random.Generator(np.random.Philox(rng.derive(seed, SKEW)))
    names, left = np.unique(labels, return_counts=True)
    stream = rng.fold(rng.key(seed), CUT)
    order = rng.permutation(stream, len(labels))
    stacks = [order[labels[order] == name] for name in names]  # each class's rows in random order, taken from the end
    prior = left / len(labels)
    for size in (len(part) for part in np.array_split(order, count)):
        q = generator.dirichlet(alpha * prior)
        take = np.zeros_like(left)
        while take.sum() < size:
            weights = np.where(left > take, q, 0)
            # Rounding may leave no weight where samples are left: then they are drawn as they come.
            weights = weights if weights.sum() > 0 else (left - take).astype(np.float64)
            draws = generator.multinomial(size - take.sum(), weights / weights.sum())
            take = np.minimum(take + draws, left)  # what a class lacks is drawn again from the others
        yield np.concatenate([stack[n - t : n] for stack, n, t in zip(stacks, left, take, strict=True)])
        left = left - take


def tidy(x: NDArray[Any], y: NDArray[Any], name: str, indices: Indices) -> tuple[NDArray[Any], NDArray[Any]]:
    """A shard's samples and targets in the types that shards have.

    Raises:
        DataError: unequal lengths, or a value that is not finite.
    """
    if len(x) != len(indices) or len(y) != len(indices):
        raise DataError(f"{name} gave {len(x)} samples and {len(y)} targets where {len(indices)} were asked for")
    for kind, part in (("x", x), ("y", y)):
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            bad = next(i for i, item in zip(indices, part, strict=True) if not np.isfinite(item).all())
            raise DataError(f"{name}: {kind} of sample {bad} has a value that is not a finite number")
    if x.dtype == np.float64:
        x = x.astype(np.float32)
    elif x.dtype == np.bool_:
        x = x.astype(np.uint8)
    return x, y.astype(np.float32 if y.dtype.kind == "f" else np.int64)


def count_labels(y: NDArray[Any], classes: int, name: str) -> tuple[int, ...]:
    """How many targets are of each class; empty where there are no classes.

    Raises:
        DataError: a target is no class label.
    """
    if not classes:
        return ()
    if y.ndim != 1 or y.min() < 0 or y.max() >= classes:
        raise DataError(f"{name}: with {classes} classes, every target must be one integer from 0 to {classes - 1}")
    return tuple(np.bincount(y, minlength=classes).tolist())


def save(folder: Path, x: NDArray[Any], y: NDArray[Any], taken: Container[ShardId]) -> tuple[ShardId, int]:
    """Write a shard's file unless it is there; its id, which is not in `taken`, and its bytes."""
    copy = 0
    while True:
        data = wire.encode(Header(copy), {"x": x, "y": y})
        name = hashlib.sha256(data).hexdigest()
        if name not in taken:
            break
        copy += 1
    path = path_of(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != len(data):
            wire.write(path, data)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    return name, len(data)


def path_of(folder: Path, shard: ShardId) -> Path:
    """A shard's file.

    Raises:
        DataError: it is no shard's name.
    """
    if not re.fullmatch("[0-9a-f]{64}", shard):  # a name may come from another machine
        raise DataError(f"{shard[:80]!r} is not a shard's name, which is a SHA-256 in hexadecimal")
    return folder / f"{shard}.safetensors"


def load(folder: Path, shard: ShardId) -> dict[str, NDArray[Any]]:
    """A shard's `x` and `y`, verified.

    Raises:
        DataError: the file is missing, damaged, or not a shard.
    """
    path = path_of(folder, shard)
    remedy = "delete the file and run again"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: run again, and the data are cut anew") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != shard:
        raise DataError(f"{path} is truncated or damaged, its SHA-256 is not its name: {remedy}")
    try:
        _, arrays = wire.decode(data, Header)
    except MessageError as error:
        raise DataError(f"{path}: {error}: {remedy}") from error
    lengths = [len(arrays[name]) if name in arrays and arrays[name].ndim else 0 for name in ("x", "y")]
    if set(arrays) != {"x", "y"} or lengths[0] != lengths[1] or lengths[0] == 0:
        raise DataError(f"{path} is not a shard, which has tensors x and y of one length: {remedy}")
    return arrays


def peek(folder: Path, shard: ShardId, samples: int = 2) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first `x` and `y` of a shard, without reading the rest.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = path_of(folder, shard)
    try:
        with safetensors.safe_open(path, "np") as file:
            parts = [file.get_slice(name) for name in "xy"]
            x, y = (part[: min(samples, part.get_shape()[0])] for part in parts)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}: delete the file and run again") from error
    return x, y
