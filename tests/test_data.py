"""Cutting, loading and caching shards."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainpool import wire
from trainpool.data import ArraySource, DatasetSource, Manifest, cut, default_cache, load, prepare, whole
from trainpool.data import shards as shards_module
from trainpool.data.shards import peek
from trainpool.errors import ConfigError, DataError


def images(samples: int = 100, classes: int = 10) -> ArraySource:
    """Images whose first pixels spell the sample's number."""
    x = np.zeros((samples, 1, 2, 2), np.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = np.arange(samples) % 256, np.arange(samples) // 256
    return ArraySource(x, np.arange(samples) % classes, "images")


def numbers(arrays: dict[str, Any]) -> list[int]:
    x = arrays["x"].astype(int)
    return (x[:, 0, 0, 0] + 256 * x[:, 0, 0, 1]).tolist()


def ids(manifest: Manifest) -> list[str]:
    return [shard.id for shard in manifest.shards]


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 60),
    count=st.integers(1, 60),
    classes=st.integers(1, 5),
    seed=st.integers(0, 2**64 - 1),
    skew=st.none() | st.floats(1e-4, 100),
)
def test_every_sample_is_in_one_shard(
    samples: int, count: int, classes: int, seed: int, skew: float | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count = min(count, samples)
    folder, source = tmp_path_factory.mktemp("cut"), images(samples, classes)
    manifest = cut(source, count, folder=folder, seed=seed, skew=skew)
    parts = [load(folder, shard.id) for shard in manifest.shards]
    assert sorted(n for part in parts for n in numbers(part)) == list(range(samples))
    sizes = [len(part["x"]) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    for shard, part in zip(manifest.shards, parts, strict=True):
        assert [n % classes for n in numbers(part)] == part["y"].tolist()
        assert shard.samples == len(part["x"])
        assert shard.labels == tuple(np.bincount(part["y"], minlength=source.classes))
        assert shard.bytes == (folder / f"{shard.id}.safetensors").stat().st_size
    assert manifest.samples == samples


@pytest.mark.parametrize("skew", [None, 0.5])
def test_the_seed_fixes_the_shards(tmp_path: Path, skew: float | None) -> None:
    first, again, other = (
        cut(images(), 7, folder=tmp_path / place, seed=seed, skew=skew)
        for place, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first.id == again.id != other.id
    assert set(ids(first)) != set(ids(other))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(f"{i}.safetensors" for i in ids(first))


def test_a_shard_is_named_by_its_content(tmp_path: Path) -> None:
    manifest = cut(images(), 3, folder=tmp_path, seed=0)
    for path in tmp_path.iterdir():
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert cut(images(), 3, folder=tmp_path, seed=0) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_equal_shards_keep_names_of_their_own(tmp_path: Path) -> None:
    manifest = cut(ArraySource(np.zeros((6, 2)), np.zeros(6, int)), 3, folder=tmp_path, seed=0)
    assert len(set(ids(manifest))) == 3


def test_skew_skews(tmp_path: Path) -> None:
    source = images(2000)

    def distance(skew: float | None) -> float:
        """The mean total-variation distance of a shard's labels from the even distribution."""
        shards = cut(source, 10, folder=tmp_path, seed=1, skew=skew).shards
        return float(np.mean([np.abs(np.array(s.labels) / s.samples - 0.1).sum() / 2 for s in shards]))

    iid, mild, strong = distance(None), distance(100), distance(0.1)
    assert iid < 0.12
    assert iid < mild < 0.2
    assert strong > 0.6


def test_types_of_samples_and_targets(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(6, 2)
    manifest = cut(ArraySource(x, x[:, :1]), 1, folder=tmp_path, seed=0)
    arrays = load(tmp_path, manifest.shards[0].id)
    assert (arrays["x"].dtype, arrays["y"].dtype) == (np.float32, np.float32)
    assert (manifest.dtype, manifest.shape, manifest.classes) == ("float32", (2,), 0)
    assert manifest.shards[0].labels == ()
    manifest = cut(ArraySource(x > 3, np.arange(6, dtype=np.uint8)), 1, folder=tmp_path, seed=0)
    arrays = load(tmp_path, manifest.shards[0].id)
    assert (arrays["x"].dtype, arrays["y"].dtype) == (np.uint8, np.int64)
    assert manifest.classes == 6


def test_progress_counts_samples(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cut(images(10), 4, folder=tmp_path, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 10), (6, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "the number of shards must be at least 1, not 0"),
        (101, {}, "images has 100 samples, too few for 101 shards: choose at most 100 shards"),
        (2, {"skew": 0.0}, r"skew must be a number above 0 \(smaller is more skewed\), not 0.0"),
        (2, {"skew": float("nan")}, "skew must be a number above 0"),
    ],
)
def test_cuts_that_are_refused(tmp_path: Path, count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        cut(images(), count, folder=tmp_path, seed=0, **options)
    assert not list(tmp_path.iterdir())


def test_skew_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data has no class labels, which skew needs: leave skew out"):
        cut(ArraySource(np.zeros((4, 2)), np.zeros(4)), 2, folder=tmp_path, seed=0, skew=1.0)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    x = np.zeros((5, 2))
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="data: x of sample 3 has a value that is not a finite number"):
        cut(ArraySource(x, np.zeros(5)), 2, folder=tmp_path, seed=0)
    with pytest.raises(DataError, match="data: y of sample 4 has a value that is not a finite number"):
        cut(ArraySource(np.zeros((5, 2)), np.array([0, 0, 0, 0, np.inf])), 2, folder=tmp_path, seed=0)


def test_sources_that_break_their_promise(tmp_path: Path) -> None:
    mixed = DatasetSource([(np.zeros(2), 0), (np.zeros(3), 0)], "mixed")
    with pytest.raises(DataError, match=r"mixed: samples \d to \d are float32 \(\d,\) with targets int64 \(\)"):
        cut(mixed, 2, folder=tmp_path, seed=0)
    source = images(4)
    source.y = source.y[:, None] if source.classes else source.y
    with pytest.raises(DataError, match="with 4 classes, every target must be one integer from 0 to 3"):
        cut(source, 2, folder=tmp_path, seed=0)
    source.gather = lambda indices: (np.zeros((1, 2)), np.zeros(1))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="images gave 1 samples and 1 targets where 2 were asked for"):
        cut(source, 2, folder=tmp_path, seed=0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*\.safetensors: "):
        cut(images(), 2, folder=tmp_path / "file" / "shards", seed=0)
    (tmp_path / "manifests").touch()
    with pytest.raises(DataError, match=r"cannot write .*\.json: "):
        prepare(images(), 2, cache=tmp_path)


def test_damaged_shards(tmp_path: Path) -> None:
    name = cut(images(), 1, folder=tmp_path, seed=0).shards[0].id
    path = tmp_path / f"{name}.safetensors"
    data = path.read_bytes()
    for bad in (data[:-1], b"", data[:-1] + b"\xff"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"{name}.*truncated or damaged.*: delete the file and run again"):
            load(tmp_path, name)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"cannot read .*{name}.*: delete the file and run again"):
        peek(tmp_path, name)
    path.unlink()
    with pytest.raises(DataError, match=f"{name}.safetensors is missing: run again"):
        load(tmp_path, name)
    path.mkdir()
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        load(tmp_path, name)


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": np.zeros(2)},
        {"x": np.zeros(2), "y": np.zeros(3)},
        {"x": np.zeros(0), "y": np.zeros(0)},
        {"z": np.zeros(1)},
    ],
)
def test_files_that_are_no_shards(tmp_path: Path, tensors: dict[str, Any]) -> None:
    data = wire.encode(shards_module.Header(), tensors)
    name = hashlib.sha256(data).hexdigest()
    (tmp_path / f"{name}.safetensors").write_bytes(data)
    with pytest.raises(DataError, match="is not a shard, which has tensors x and y of one length: delete the file"):
        load(tmp_path, name)


def test_files_that_are_not_even_messages(tmp_path: Path) -> None:
    name = hashlib.sha256(b"hello").hexdigest()
    (tmp_path / f"{name}.safetensors").write_bytes(b"hello")
    with pytest.raises(DataError, match=f"{name}.safetensors: not a trainpool message: .*: delete the file"):
        load(tmp_path, name)


@pytest.mark.parametrize("name", ["../secret", "", "A" * 64, "a" * 64 + "\n"])
def test_names_that_are_no_shards(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not a shard's name"):
        load(tmp_path, name)


class Unreadable(ArraySource):
    """A source that can say what it holds, but fails when it is read."""

    def gather(self, indices: Any) -> Any:
        raise AssertionError("the source was read")


def test_prepare_cuts_once(tmp_path: Path) -> None:
    source = images()
    manifest, folder = prepare(source, 4, cache=tmp_path, seed=1, skew=0.5)
    assert manifest == cut(source, 4, folder=tmp_path / "elsewhere", seed=1, skew=0.5)
    closed = Unreadable(source.x, source.y, "another name")
    again, _ = prepare(closed, 4, cache=tmp_path, seed=1, skew=0.5)
    assert (again.id, again.name) == (manifest.id, "another name")
    for other in ({"count": 5}, {"seed": 2}, {"skew": None}):
        with pytest.raises(AssertionError, match="the source was read"):
            prepare(closed, cache=tmp_path, **{"count": 4, "seed": 1, "skew": 0.5, **other})
    assert [load(folder, shard.id)["y"].size for shard in again.shards] == [25] * 4


@pytest.mark.parametrize("damage", ["missing", "truncated", "manifest"])
def test_prepare_cuts_again_what_is_lost(tmp_path: Path, damage: str) -> None:
    manifest, folder = prepare(images(), 4, cache=tmp_path)
    victim = folder / f"{manifest.shards[2].id}.safetensors"
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-5])
    else:
        next((tmp_path / "manifests").iterdir()).write_bytes(b"{")
    assert prepare(images(), 4, cache=tmp_path)[0] == manifest
    assert load(folder, manifest.shards[2].id)["y"].size == 25


def test_without_a_fingerprint_every_call_reads_the_source(tmp_path: Path) -> None:
    source = DatasetSource([(np.full(2, i), i % 3) for i in range(9)])
    first = prepare(source, 3, cache=tmp_path)[0]
    assert not (tmp_path / "manifests").exists()
    assert prepare(source, 3, cache=tmp_path)[0] == first


def test_whole_keeps_the_order(tmp_path: Path) -> None:
    manifest, folder = whole(images(300), tmp_path)
    assert len(manifest.shards) == 1
    assert numbers(load(folder, manifest.shards[0].id)) == list(range(300))


def test_default_cache_is_the_users() -> None:
    assert "trainpool" in default_cache().parts


def test_importing_data_is_light() -> None:
    code = "import sys, trainpool.data; print(*sorted({'torch', 'PIL', 'sklearn', 'platformdirs'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
