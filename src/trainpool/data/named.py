"""Data sets by name: found on this machine where it has them, otherwise downloaded and checked."""

import gzip
import hashlib
import http.client
import struct
import urllib.request
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trainpool import rng, wire
from trainpool.data.shards import Progress
from trainpool.data.sources import ArraySource, Source
from trainpool.errors import ConfigError, DataError, did_you_mean

__all__ = ["NAMES", "NamedData", "named"]

NAMES = {
    "fashion-mnist": "70,000 photographs of clothes in 10 classes, grey, 28x28 pixels (Xiao, Rasul, Vollgraf 2017)",
    "digits": "1,797 handwritten digits, grey, 8x8 pixels, from scikit-learn (Alpaydin, Kaynak 1998): no download",
}

PUBLISHER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ATTEMPTS = 3
TIMEOUT = 30.0
"""Seconds without a byte before a download counts as broken."""

Open = Callable[[str], IO[bytes]]


@dataclass(frozen=True)
class NamedData:
    """A data set with its customary split."""

    train: Source
    test: Source
    mean: tuple[float, ...]
    """Of the training pixels, scaled to 0 to 1, a channel each."""
    std: tuple[float, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Remote:
    """A file that its publisher offers, gzipped."""

    name: str
    bytes: int
    """As downloaded."""
    sha256: str
    """Of the content: Debian ships the publisher's compressed streams under gzip headers of its own."""


# The contents were identified through the publisher's MD5 sums of the four files.
FASHION = (
    Remote("train-images-idx3-ubyte.gz", 26421880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    Remote("train-labels-idx1-ubyte.gz", 29515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    Remote("t10k-images-idx3-ubyte.gz", 4422102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    Remote("t10k-labels-idx1-ubyte.gz", 5148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def named(name: str, cache: Path, progress: Progress | None = None) -> NamedData:
    """A data set by its name; what is downloaded is kept in `cache`, `progress` counts its bytes.

    Raises:
        ConfigError: an unknown name.
        DataError: the files are damaged, or are missing and cannot be downloaded.
    """
    if name == "fashion-mnist":
        return fashion_mnist(cache, progress)
    if name == "digits":
        return digits()
    raise ConfigError(f"no data set {name!r}{did_you_mean(name, NAMES)}; there are: {', '.join(NAMES)}")


def fashion_mnist(
    cache: Path,
    progress: Progress | None = None,
    *,
    system: Path = DEBIAN,
    publisher: str = PUBLISHER,
    files: tuple[Remote, ...] = FASHION,
    class_names: tuple[str, ...] = FASHION_CLASSES,
    mean: float = 0.2860,
    std: float = 0.3530,
    opener: Open | None = None,
) -> NamedData:
    """Fashion-MNIST from the cache, from Debian's package in `system`, or from its publisher.

    Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    arXiv:1708.07747, 2017.
    """
    own = cache / "fashion-mnist"
    places = {file: next((d / file.name for d in (own, system) if (d / file.name).exists()), None) for file in files}
    missing = [file for file, place in places.items() if place is None]
    done, total = 0, sum(file.bytes for file in missing)
    for file in missing:
        report = None if progress is None else shifted(progress, done, total)
        places[file] = download(file, publisher, own, report, opener or web)
        done += file.bytes
    train_x, train_y, test_x, test_y = (idx(place, file.sha256) for file, place in places.items() if place)
    sums = [file.sha256 for file in files]
    return NamedData(
        pixels_and_labels(train_x, train_y, "fashion-mnist", len(class_names), "".join(sums[:2])),
        pixels_and_labels(test_x, test_y, "fashion-mnist test", len(class_names), "".join(sums[2:])),
        (mean,),
        (std,),
        class_names,
    )


def digits() -> NamedData:
    """Scikit-learn's digits: 1,437 to train on and 360 to test on, split by a fixed permutation."""
    try:
        import sklearn.datasets
    except ImportError as error:
        raise DataError("digits come with scikit-learn, which is not installed: pip install scikit-learn") from error
    found = sklearn.datasets.load_digits()
    x = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    order = rng.permutation(rng.key(0), len(x))
    train, test = order[:1437], order[1437:]
    scaled = x[train] / 255
    y = found.target.astype(np.int64)
    return NamedData(
        ArraySource(x[train], y[train], "digits", classes=10),
        ArraySource(x[test], y[test], "digits test", classes=10),
        (float(scaled.mean()),),
        (float(scaled.std()),),
        tuple(str(digit) for digit in range(10)),
    )


def pixels_and_labels(x: NDArray[Any], y: NDArray[Any], name: str, classes: int, fingerprint: str) -> ArraySource:
    """Grey images `[n, H, W]` and labels as a source; x is `[n, 1, H, W]`."""
    fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
    return ArraySource(x[:, None], y.astype(np.int64), name, classes=classes, fingerprint=fingerprint)


def idx(path: Path, sha256: str) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes whose content has the SHA-256 given.

    Raises:
        DataError: the file is damaged.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, str(error)) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise damaged(path, "its content has a wrong SHA-256")
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def damaged(path: Path, why: str) -> DataError:
    """The error of a file that is not what it should be."""
    return DataError(f"{path} is damaged ({why}): delete it and run again, and it is downloaded anew")


def download(file: Remote, publisher: str, folder: Path, progress: Progress | None, opener: Open) -> Path:
    """Fetch a file into `folder`; it appears there only once its content is checked.

    Raises:
        DataError: after the last attempt, with what to do instead.
    """
    path = folder / file.name
    why = ""
    for _ in range(ATTEMPTS):
        try:
            with opener(publisher + file.name) as answer:
                data = b"".join(blocks(answer, file.bytes, progress))
            if hashlib.sha256(gzip.decompress(data)).hexdigest() != file.sha256:
                why = "what came has a wrong SHA-256"
                continue
        except (
            OSError,
            EOFError,
            zlib.error,
            http.client.HTTPException,
        ) as error:  # URLError and timeouts are OSErrors
            why = " ".join(str(error).split())
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            wire.write(path, data)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error
        return path
    raise DataError(
        f"cannot download {publisher}{file.name} ({why}): on Debian or Ubuntu `apt-get install "
        f"dataset-fashion-mnist`, or put the file into {folder}, then run again"
    )


def blocks(answer: IO[bytes], size: int, progress: Progress | None) -> Iterable[bytes]:
    """What arrives, block by block; no more than a little beyond `size` is taken."""
    got = 0
    while got <= size and (block := answer.read(1 << 16)):
        got += len(block)
        if progress:
            progress(min(got, size), size)
        yield block


def shifted(progress: Progress, done: int, total: int) -> Progress:
    """Progress of one file as a part of all of them."""
    return lambda got, _: progress(done + got, total)


def web(url: str) -> IO[bytes]:
    """Open an address."""
    answer: IO[bytes] = urllib.request.urlopen(url, timeout=TIMEOUT)
    return answer
