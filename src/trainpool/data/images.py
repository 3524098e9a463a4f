"""Images from a folder, one subfolder for each class."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainpool.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFolderSource", "pixels"]

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
GREY = {"1", "L", "LA"}
DEEP = {"F", "I", "I;16", "I;16B", "I;16L", "I;16N"}  # more than eight bits: Pillow would clip, not scale


class ImageFolderSource:
    """A folder of images `class/name.png`: x is uint8 `[n, C, H, W]`, y the class's place among the sorted names.

    All images must have one size. They are grey (C = 1) if all files are, otherwise RGB (C = 3); transparency is
    dropped, and of an animation the first frame is taken.

    Test data are numbered by the training data's `class_names`, since they may lack a class.

    Raises:
        DataError: the folder is missing, or has no classes, an empty one or one that is not among `class_names`; (from
            `gather`) a file is unreadable, or sizes differ.
    """

    def __init__(self, path: str | Path, class_names: tuple[str, ...] = ()) -> None:
        self.path = Path(path)
        self.name = str(path)
        if not self.path.is_dir():
            raise DataError(f"{path}: no such folder")
        folders = sorted(f for f in self.path.iterdir() if f.is_dir() and not f.name.startswith("."))
        if not folders:
            raise DataError(f"{path} has no class folders; images must lie in it as class/name.png")
        self.class_names = class_names or tuple(folder.name for folder in folders)
        self.classes = len(self.class_names)
        unknown = sorted({folder.name for folder in folders} - set(self.class_names))
        if unknown:
            raise DataError(
                f"{path}: the training data have no class {unknown[0]!r}, but {', '.join(self.class_names)}: "
                f"rename or remove the folder"
            )
        self.files: list[Path] = []
        targets: list[int] = []
        for folder in folders:
            found = sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS and not f.name.startswith("."))
            if not found:
                kinds = ", ".join(sorted(ending[1:] for ending in ENDINGS))
                raise DataError(f"{folder} holds no images ({kinds}); images must lie in {path} as class/name.png")
            self.files += found
            targets += [self.class_names.index(folder.name)] * len(found)
        self.targets = np.array(targets, np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of class names, relative paths, sizes and times of change: no image is opened."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for file in self.files:
            state = file.stat()
            digest.update(f"{file.relative_to(self.path).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def labels(self) -> NDArray[np.int64]:
        """See `Source.labels`."""
        return self.targets

    @cached_property
    def form(self) -> tuple[tuple[int, int], bool]:
        """(Width, height) of every image, and whether all are grey; reads the headers alone."""
        size, grey = None, True
        for file in self.files:
            with opened(file) as image:
                size = size or image.size
                if image.size != size:
                    w, h = image.size
                    raise DataError(
                        f"{file} has {w}x{h} pixels, but {self.files[0]} has {size[0]}x{size[1]}: "
                        f"resize the images to one size"
                    )
                grey = grey and image.mode in GREY
        assert size is not None
        return size, grey

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `Source.gather`."""
        (width, height), grey = self.form
        x = np.empty((len(indices), 1 if grey else 3, height, width), np.uint8)
        for row, index in enumerate(indices):
            file = self.files[index]
            with opened(file) as image:
                try:
                    x[row] = pixels(image, grey)
                except Exception as error:  # decoders raise whatever their formats suggest
                    raise unreadable(file, error) from error
        return x, self.targets[indices]


def opened(file: Path) -> "Image":
    """An image whose header is read.

    Raises:
        DataError: it is unreadable.
    """
    import PIL.Image

    try:
        return PIL.Image.open(file)
    except Exception as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> DataError:
    """The error of a file that is no whole image."""
    text = " ".join(str(error).split())
    return DataError(f"{file} is not a readable image ({text}): repair or remove it")


def pixels(image: "Image", grey: bool | None = None) -> NDArray[np.uint8]:
    """A PIL image as uint8 `[C, H, W]`: grey (C = 1) where `grey` says so, by default if it is; otherwise RGB.

    Raises:
        ValueError: it has more than eight bits a channel.
    """
    if image.mode in DEEP:
        raise ValueError(f"its mode {image.mode} has more than 8 bits a channel: convert it to 8 bits")
    if grey is None:
        grey = image.mode in GREY
    if not grey and image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns when a palette's transparency is dropped in one step
    values = np.asarray(image.convert("L" if grey else "RGB"), np.uint8)
    return values[None] if grey else np.ascontiguousarray(values.transpose(2, 0, 1))
