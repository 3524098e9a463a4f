"""Data sets by name: found, downloaded, checked."""

import gzip
import hashlib
import io
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from trainpool.data import named
from trainpool.data.named import DEBIAN, FASHION, Remote, fashion_mnist
from trainpool.errors import ConfigError, DataError


def test_digits(tmp_path: Path) -> None:
    data = named("digits", tmp_path)
    assert (len(data.train), len(data.test), data.train.classes, data.test.classes) == (1437, 360, 10, 10)
    x, _ = data.train.gather(np.arange(1437))
    assert (x.shape, x.dtype, x.min(), x.max()) == ((1437, 1, 8, 8), np.uint8, 0, 255)
    assert data.mean == (pytest.approx((x / 255).mean()),)
    assert data.class_names[3] == "3"
    assert data.train.fingerprint == named("digits", tmp_path).train.fingerprint != data.test.fingerprint


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'digit' \(did you mean 'digits'\?\); there are: fashion-mnist"):
        named("digit", tmp_path)


class Publisher:
    """Small files in Fashion-MNIST's format, and a server of them that fails as often as it is told."""

    def __init__(self) -> None:
        contents = []
        for samples in (6, 3):
            pixels = bytes(i % 256 for i in range(samples * 4))
            contents += [struct.pack(">HBB3I", 0, 8, 3, samples, 2, 2) + pixels]
            contents += [struct.pack(">HBBI", 0, 8, 1, samples) + bytes(i % 3 for i in range(samples))]
        self.data = {
            file.name: gzip.compress(content, mtime=0) for file, content in zip(FASHION, contents, strict=True)
        }
        self.files = tuple(
            Remote(file.name, len(self.data[file.name]), hashlib.sha256(content).hexdigest())
            for file, content in zip(FASHION, contents, strict=True)
        )
        self.failures: list[Any] = []
        self.asked: list[str] = []

    def open(self, url: str) -> IO[bytes]:
        self.asked.append(url)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return io.BytesIO(failure)
        return io.BytesIO(self.data[url.rpartition("/")[2]])

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, data in self.data.items():
            (folder / name).write_bytes(data)
        return folder


def fashion(publisher: Publisher, cache: Path, **options: Any) -> Any:
    options = {"opener": publisher.open, "system": cache / "none", **options}
    return fashion_mnist(cache, publisher="http://host/", files=publisher.files, class_names=("a", "b", "c"), **options)


def test_fashion_mnist_from_its_publisher(tmp_path: Path) -> None:
    publisher, seen = Publisher(), []
    publisher.failures = [TimeoutError("timed out"), publisher.data[FASHION[0].name][:-9]]
    data = fashion(publisher, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (data.train.classes, len(data.train), len(data.test)) == (3, 6, 3)
    x, y = data.test.gather(np.arange(3))
    assert (x.shape, x.ravel().tolist(), y.tolist()) == ((3, 1, 2, 2), list(range(12)), [0, 1, 2])
    assert len(publisher.asked) == 4 + 2
    assert publisher.asked[-1] == "http://host/t10k-labels-idx1-ubyte.gz"
    total = sum(map(len, publisher.data.values()))
    assert seen[-1] == (total, total)
    again = fashion(publisher, tmp_path)
    assert len(publisher.asked) == 4 + 2
    assert again.train.fingerprint == data.train.fingerprint != data.test.fingerprint


def test_fashion_mnist_from_the_system_or_a_file_address(tmp_path: Path) -> None:
    publisher = Publisher()
    place = publisher.write(tmp_path / "system")
    assert len(fashion(publisher, tmp_path, system=place).train) == 6
    assert publisher.asked == []
    options = {"files": publisher.files, "class_names": ("a", "b", "c"), "system": tmp_path / "none"}
    assert len(fashion_mnist(tmp_path, publisher=f"{place.as_uri()}/", **options).train) == 6
    assert sorted(p.name for p in (tmp_path / "fashion-mnist").iterdir()) == sorted(publisher.data)


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (OSError("no route"), "no route"),
        (gzip.compress(b"other", mtime=0), "what came has a wrong SHA-256"),
        (b"<html>", "Not a gzipped file"),
    ],
)
def test_fashion_mnist_out_of_reach(tmp_path: Path, failure: Any, why: str) -> None:
    publisher = Publisher()
    publisher.failures = [failure] * 3
    message = (
        rf"cannot download http://host/train-images-idx3-ubyte.gz \({why}.*\): on Debian or Ubuntu `apt-get instal"
    )
    with pytest.raises(DataError, match=message):
        fashion(publisher, tmp_path)
    assert len(publisher.asked) == 3
    assert not (tmp_path / "fashion-mnist").exists()
    (tmp_path / "fashion-mnist").touch()
    with pytest.raises(DataError, match=r"cannot write .*train-images-idx3-ubyte.gz"):
        fashion(publisher, tmp_path)


@pytest.mark.parametrize("bad", [b"", b"junk", gzip.compress(b"other", mtime=0), None])
def test_fashion_mnist_damaged(tmp_path: Path, bad: bytes | None) -> None:
    publisher = Publisher()
    path = publisher.write(tmp_path / "fashion-mnist") / FASHION[2].name
    path.write_bytes(path.read_bytes()[:-9] if bad is None else bad)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is damaged \(.*\): delete it and run again"):
        fashion(publisher, tmp_path)


def test_the_real_fashion_mnist_where_it_is_installed(tmp_path: Path) -> None:
    if not all((DEBIAN / file.name).exists() for file in FASHION):
        return
    data = named("fashion-mnist", tmp_path)
    assert (len(data.train), len(data.test), data.train.classes) == (60_000, 10_000, 10)
    x, _ = data.train.gather(np.arange(60_000))
    assert (x.shape, x.dtype) == ((60_000, 1, 28, 28), np.uint8)
    assert ((x / np.float32(255)).mean(dtype=np.float64),) == pytest.approx(data.mean, abs=5e-5)
    assert ((x / np.float32(255)).std(dtype=np.float64),) == pytest.approx(data.std, abs=5e-5)
