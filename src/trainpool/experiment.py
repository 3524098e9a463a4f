"""What a person brings: a model, data, a loss. Nothing here knows how the training is distributed."""

import importlib
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainpool import models
from trainpool.data import ImageFolderSource, Source, as_source, named
from trainpool.errors import ConfigError, DataError, ModelError
from trainpool.kernels.losses import resolve
from trainpool.kernels.torch import layout_of, scale

__all__ = ["Experiment", "Normalize", "load_experiment", "named_experiment"]


@dataclass(frozen=True)
class Normalize:
    """Preprocessing for images: bytes become floats, less the mean, over the standard deviation, a channel each."""

    mean: tuple[float, ...]
    """Of values from 0 to 1."""
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """A uint8 batch `[n, C, H, W]` as float32."""
        shape = (1, -1, *([1] * (x.dim() - 2)))
        # (x/255 - mean)/std as one multiplication and one addition.
        gain = torch.tensor([1 / (255 * s) for s in self.std], device=x.device).view(shape)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=x.device).view(shape)
        return torch.addcmul(shift, x.to(torch.float32), gain)


@dataclass
class Experiment:
    """A model, the data to train it on, and what to minimise."""

    model: nn.Module
    """Trained from the parameters that it has."""
    train: Any
    """`(x, y)` arrays or tensors, a map-style dataset of `(x, y)`, a folder of images `class/name.png`, a `Source`."""
    test: Any = None
    """The same kinds; without it nothing is evaluated."""
    loss: str | Callable[[Any, Tensor], Tensor] = "cross-entropy"
    """`cross-entropy`, `half-squared-error`, `mse`, or a function of (output, target) that returns the batch's mean."""
    preprocess: Callable[[Tensor], Any] | None = None
    """From a batch as stored (images: uint8 `[n, C, H, W]`) to the model's input; by default bytes are over 255."""
    name: str = "experiment"
    augment: Callable[[Tensor], Tensor] | None = None
    """Changes a training batch as stored, at random, before `preprocess`; see `trainpool.augment`."""

    def sources(self) -> tuple[Source, Source | None]:
        """Training and test data.

        Raises:
            DataError: one is of no kind that is accepted, or a test folder has a class that the training folder lacks.
        """
        train = as_source(self.train, name=f"{self.name}, training data")
        test = None if self.test is None else as_source(self.test, name=f"{self.name}, test data")
        if isinstance(train, ImageFolderSource) and isinstance(test, ImageFolderSource):
            test = ImageFolderSource(test.path, train.class_names)
        return train, test

    def loss_function(self) -> Callable[[Any, Tensor], Tensor]:
        """The loss as a function."""
        return resolve(self.loss)

    def check(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], classes: int, *, test: bool = False) -> None:
        """Run two samples through the model and the loss, so that what does not fit is said before anything starts.

        `test` says that they are test data: the model is then evaluated.

        Raises:
            ModelError: there is nothing to train, or model, loss, preprocessing and data do not fit together.
            DataError: the labels exceed the model's outputs.
        """
        layout_of(self.model)
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        training, which = self.model.training, " of the test data" if test else ""
        try:
            self.model.train(not test)
            with torch.random.fork_rng(devices=[]):
                prepared = (self.preprocess or scale)(torch.from_numpy(np.array(x[:2])))
                if isinstance(prepared, Tensor) and prepared.is_floating_point():
                    prepared = prepared.to(next(self.model.parameters()).dtype)
                output = self.model(prepared)
                if classes and isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] < classes:
                    raise DataError(
                        f"labels{which} run up to {classes - 1}, but the model has {output.shape[1]} outputs: "
                        f"give it {classes}, or correct the labels"
                    )
                loss = self.loss_function()(output, torch.from_numpy(np.array(y[:2])))
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                raise ModelError("the loss function must return one number, the mean over the batch, as a tensor")
            if not loss.requires_grad and not test:
                raise ModelError("the loss does not depend on the model's parameters: nothing can be trained")
        except (DataError, ModelError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise ModelError(
                f"a batch of shape {tuple(x[:2].shape)}{which} did not pass through preprocessing, model and loss: "
                f"{type(error).__name__}: {text}"
            ) from error
        finally:
            self.model.load_state_dict(state)
            self.model.train(training)


def named_experiment(
    data: str,
    model: str,
    *,
    cache: Path,
    seed: int = 0,
    loss: str = "cross-entropy",
    options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Experiment:
    """An experiment of this package's own data sets and models; `options` go to the model.

    Raises:
        ConfigError: an unknown name, or a model that does not fit the data.
        DataError: the data are missing and cannot be downloaded.
    """
    if Path(data).is_dir():
        source = as_source(data, name=data)
        x, _ = source.gather(np.array([0]))
        network = models.build(model, x.shape[1:], source.classes, seed, **(options or {}))
        return Experiment(network, source, loss=loss, name=f"{model} on {data}")
    found = named(data, cache, progress)
    x, _ = found.train.gather(np.array([0]))
    network = models.build(model, x.shape[1:], found.train.classes, seed, **(options or {}))
    preprocess = Normalize(found.mean, found.std)
    return Experiment(network, found.train, found.test, loss, preprocess, f"{model} on {data}")


def importable(file: Path) -> None:
    """Let the modules beside a file be imported, as Python does for a script."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def load_experiment(place: str) -> Experiment:
    """The `Experiment` at `file.py:name`: an object, or a function without arguments that makes one.

    Raises:
        ConfigError: the file or the name is not there, or is something else, or the file is no Python.
    """
    path, _, name = place.rpartition(":")
    file = Path(path)
    if Path(place).is_file():
        raise ConfigError(f"{place} needs the name of the experiment in it: {place}:name")
    if not path or not file.is_file():
        raise ConfigError(f"no file {path or place!r}; an experiment is given as file.py:name")
    importable(file)
    try:
        if file.stem.isidentifier() and file.stem not in sys.modules:
            found = getattr(importlib.import_module(file.stem), name, None)
        else:
            found = runpy.run_path(str(file)).get(name)
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    if callable(found) and not isinstance(found, Experiment):
        found = found()
    if not isinstance(found, Experiment):
        raise ConfigError(f"{path} has no trainpool.Experiment named {name!r}")
    return found
