"""Networks that the examples, the comparisons and the command line train. Any other `nn.Module` does as well."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainpool.errors import ConfigError, did_you_mean
from trainpool.models.cnn import CNN
from trainpool.models.dense import MLP, Logistic
from trainpool.models.resnet import ResNet20

__all__ = ["CNN", "MLP", "NAMES", "Logistic", "ResNet20", "build"]

NAMES = {
    "cnn": "two convolutions with max-pooling, two fully connected layers: 421,642 parameters on 28x28 grey images",
    "resnet20": "residual network of 20 layers (He, Zhang, Ren, Sun 2016): about 270,000 parameters",
    "mlp": "two hidden layers of 256 units",
    "logistic": "logistic regression: one linear layer, a convex problem",
}

MODELS: dict[str, Callable[..., nn.Module]] = {"cnn": CNN, "resnet20": ResNet20, "mlp": MLP, "logistic": Logistic}


def build(name: str, shape: tuple[int, ...], classes: int, seed: int = 0, **options: Any) -> nn.Module:
    """A freshly initialised network for samples of a shape, `(C, H, W)` for images.

    The parameters depend on `seed` alone; PyTorch's own random state is left as it was.

    Raises:
        ConfigError: an unknown name or option, or a shape or number of classes that the network cannot have.
    """
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}{did_you_mean(name, MODELS)}; there are: {', '.join(MODELS)}")
    model = MODELS[name]
    known = [option for option in inspect.signature(model).parameters if option not in ("shape", "classes")]
    for option in options:
        if option not in known:
            there = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise ConfigError(f"{name} has no option {option!r}{did_you_mean(option, known)}; {there}")
    if classes < 1:
        raise ConfigError(f"{name} needs at least 1 class, not {classes}: the data need class labels")
    if not shape or min(shape) < 1:
        raise ConfigError(f"{name} needs samples of at least one number each, not of shape {tuple(shape)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(tuple(shape), classes, **options)
