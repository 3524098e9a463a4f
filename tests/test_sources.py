"""Sources of samples: arrays, map-style data sets, folders of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trainpool as tp
from trainpool.data import ArraySource, DatasetSource, ImageFolderSource, as_source, cut, load, prepare
from trainpool.errors import DataError

ALL = np.arange(3)


def test_arrays_and_tensors_are_the_same_source() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(3, 4), np.array([0, 2, 1])
    a, b = ArraySource(x, y), ArraySource(torch.from_numpy(x).requires_grad_(), torch.from_numpy(y))
    assert a.fingerprint == b.fingerprint
    assert a.classes == b.classes == 3
    np.testing.assert_array_equal(b.gather(np.array([2, 0]))[0], x[[2, 0]])
    assert ArraySource(x, y[::-1]).fingerprint != a.fingerprint
    assert ArraySource(x, y, classes=5).classes == 5
    regression = ArraySource(x, y / 2)
    assert (regression.classes, regression.labels()) == (0, None)


@pytest.mark.parametrize(
    ("x", "y", "classes", "message"),
    [
        (np.zeros((3, 2)), [0, 1], None, "d: x has 3 samples and y has 2; they must have equally many"),
        (np.zeros((3, 2)), [-1, 9, 0], None, "d: labels run from -1 to 9; classes must be numbered from 0: renumber"),
        (np.zeros((3, 2)), [1, 3, 2], 3, "d: labels run from 1 to 3; classes must be numbered from 0 to 2: renumber"),
        (np.zeros((1, 2)), [10**9], None, "d: labels run from 1000000000 to 1000000000; .* make y floating-point"),
        (np.zeros((0, 2)), [], None, "d is empty: at least one sample is needed"),
        (np.zeros(2), 3, None, "d: x and y must be arrays of samples, not single numbers"),
        (["a", "b"], [0, 1], None, "x of d must be numbers or a PIL image, not a list of 2"),
        (np.zeros(2), np.array(["a", "b"]), None, "y of d must be numbers or a PIL image, not an array of type <U1"),
        ([[1], [1, 2]], [0, 1], None, "x of d cannot become an array: "),
        (torch.zeros(2, dtype=torch.bfloat16), [0, 1], None, "x of d cannot become an array: .*BFloat16"),
    ],
)
def test_arrays_that_are_refused(x: Any, y: Any, classes: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySource(x, y, "d", classes=classes)


class Counting:
    """A data set that counts how often each item is read."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.reads = items, [0] * len(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        return self.items[index]


def test_datasets_are_read_once(tmp_path: Path) -> None:
    items = [(torch.full((2,), float(i)), i % 3) for i in range(20)]
    dataset = Counting(items)
    manifest = cut(as_source(dataset), 4, folder=tmp_path, seed=0)
    assert manifest.classes == 3
    assert dataset.reads == [1] * 20
    assert sum(sum(shard.labels) for shard in manifest.shards) == 20
    dataset = Counting(items)
    assert cut(as_source(dataset), 4, folder=tmp_path, seed=0, skew=0.1).classes == 3
    assert dataset.reads == [2] * 20
    same = ArraySource(torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items]))
    assert cut(same, 4, folder=tmp_path, seed=0).id == manifest.id


def test_datasets_of_images_and_of_targets() -> None:
    source = DatasetSource([(Image.new(mode, (4, 2), 7), np.float64(0.5)) for mode in ("L", "L", "L")])
    x, y = source.gather(ALL)
    assert (x.shape, x.dtype, y.tolist()) == ((3, 1, 2, 4), np.uint8, [0.5] * 3)
    assert (source.classes, source.labels()) == (0, None)
    colour = DatasetSource([(Image.new("RGB", (4, 2), (1, 2, 3)), 1)])
    assert colour.gather(ALL[:1])[0][0, :, 0, 0].tolist() == [1, 2, 3]
    assert colour.classes == 2
    pairs = DatasetSource(torch.utils.data.TensorDataset(torch.zeros(3, 2), torch.ones(3, 4)))
    assert pairs.gather(ALL)[1].shape == (3, 4)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(0, 1), (0, 1), 5], r"item 2 of d must be a pair \(x, y\), not an object of type int"),
        ([(0, 1), (0, 1), (1, 2, 3)], r"item 2 of d must be a pair \(x, y\), not a tuple of 3"),
        ([(0, 1), (0, 1), ("a", 2)], "x of item 2 of d must be numbers or a PIL image, not an object of type str"),
        ([(0, 1), ([0], 1), (0, 1)], r"item 1 of d: its x is int64 \(1,\), but that of item 0 is int64 \(\)"),
        ([(0, 1), (0, 1.5), (0, 1)], r"item 1 of d: its y is float64 \(\), but that of item 0 is int64 \(\)"),
        ([(0, 1), (0, 1), (Image.new("I", (2, 2)), 1)], "x of item 2 of d .* more than 8 bits a channel: convert"),
    ],
)
def test_bad_items_are_named(items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DatasetSource(items, "d").gather(ALL)


def test_items_that_cannot_be_read_or_counted() -> None:
    class Broken(Counting):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise KeyError("no\nsuch row")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"item 1 of d could not be read: KeyError: 'no\\nsuch row'"):
        DatasetSource(Broken([(0, 1)] * 3), "d").gather(ALL)
    with pytest.raises(DataError, match="d: labels run from -1 to 1; classes must be numbered from 0"):
        _ = DatasetSource([(0, 1), (0, -1)], "d").classes
    with pytest.raises(DataError, match="d is empty: at least one sample"):
        DatasetSource([], "d")


def folder_of(path: Path, *images: tuple[str, Image.Image]) -> Path:
    for name, image in images:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(path / name)
    return path


def test_a_folder_of_images(tmp_path: Path) -> None:
    grey = [(f"{name}/{i}.png", Image.new("L", (5, 4), 10 * i)) for name in ("dog", "cat") for i in range(2)]
    source = ImageFolderSource(folder_of(tmp_path, *grey))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").touch()
    assert (source.class_names, source.classes, len(source)) == (("cat", "dog"), 2, 4)
    x, y = source.gather(np.array([1, 3, 0]))
    assert (x.shape, x.dtype, x[:, 0, 0, 0].tolist(), y.tolist()) == ((3, 1, 4, 5), np.uint8, [10, 10, 0], [0, 1, 0])
    fingerprint = source.fingerprint
    assert as_source(str(tmp_path)).fingerprint == fingerprint
    palette = Image.new("P", (5, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "cat" / "2.png", transparency=b"\x00\x80")
    Image.new("RGBA", (5, 4), (1, 2, 3, 0)).save(tmp_path / "dog" / "2.WEBP", "webp", lossless=True, exact=True)
    source = ImageFolderSource(tmp_path)
    assert source.fingerprint != fingerprint
    x, _ = source.gather(np.arange(6))
    assert x.shape == (6, 3, 4, 5)
    assert x[:, :, 0, 0].tolist() == [[0] * 3, [10] * 3, [9, 8, 7], [0] * 3, [10] * 3, [1, 2, 3]]
    manifest, folder = prepare(source, 2, cache=tmp_path / ".cache")
    assert sum(load(folder, shard.id)["x"].shape[0] for shard in manifest.shards) == 6


def test_images_that_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, ("a/0.png", Image.new("L", (5, 4))), ("a/1.png", Image.new("L", (4, 4))))
    with pytest.raises(DataError, match=r"a/1.png has 4x4 pixels, but .*a/0.png has 5x4: resize the images to one"):
        ImageFolderSource(tmp_path).gather(ALL[:1])
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (4, 5), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "1.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    for bad in (b"", b"not an image", whole[:20], whole[:-25]):
        (tmp_path / "a" / "1.png").write_bytes(bad)
        with pytest.raises(DataError, match=r"a/1.png is not a readable image \(.*\): repair or remove it"):
            ImageFolderSource(tmp_path).gather(ALL[:2])
    Image.new("I;16", (5, 4)).save(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match=r"a/1.png is not a readable image \(.*more than 8 bits"):
        ImageFolderSource(tmp_path).gather(ALL[:2])


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ImageFolderSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no class folders; images must lie in it as class/name\.png"):
        ImageFolderSource(tmp_path)
    folder_of(tmp_path, ("train/cat/0.png", Image.new("L", (2, 2))))
    with pytest.raises(DataError, match=r"train holds no images \(bmp, gif, .*\); images must lie in .*class/name.png"):
        ImageFolderSource(tmp_path)


def test_a_test_folder_is_numbered_as_the_training_folder(tmp_path: Path) -> None:
    image = Image.new("L", (2, 2))
    train = folder_of(tmp_path / "train", *((f"{name}/0.png", image) for name in ("cat", "dog", "fish")))
    test = folder_of(tmp_path / "test", *((f"{name}/0.png", image) for name in ("cat", "fish")))
    network = torch.nn.Linear(4, 3)
    source = tp.Experiment(network, train, test).sources()[1]
    assert isinstance(source, ImageFolderSource)
    assert (source.labels().tolist(), source.classes) == ([0, 2], 3)
    assert source.fingerprint != ImageFolderSource(test).fingerprint  # the cache keeps them apart
    given = tp.Experiment(network, ImageFolderSource(train), ImageFolderSource(test)).sources()[1]
    assert given is not None
    assert given.fingerprint == source.fingerprint
    folder_of(test, ("ox/0.png", image))
    with pytest.raises(DataError, match=r"test: the training data have no class 'ox', but cat, dog, fish: rename or"):
        tp.Experiment(network, train, test).sources()


def test_as_source() -> None:
    source = ArraySource(ALL, ALL)
    assert as_source(source) is source
    assert isinstance(as_source((torch.zeros(2, 1), torch.zeros(2)), name="n"), ArraySource)
    assert as_source([(0, 1)], name="n").name == "n"
    for wrong in (3, ALL, torch.zeros(3), (ALL, ALL, ALL), {"x": 1}, None):
        with pytest.raises(DataError, match=r"^n: .* is no data set; give \(x, y\) arrays or tensors, a map-style"):
            as_source(wrong, name="n")
