"""Losses by name: functions of (output, target) that return the batch's mean; module-level, hence picklable."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from trainpool.errors import ConfigError, ModelError, did_you_mean

__all__ = ["NAMES", "cross_entropy", "half_squared_error", "mse", "resolve"]

Loss = Callable[[Any, Tensor], Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """-Σ_k t_k·log p_k with p = softmax(output), averaged over the batch.

    `output` is `[n, classes]`; `target` is a label `[n]`, t then being its one-hot vector, or t itself `[n, classes]`.
    """
    return functional.cross_entropy(output, target)


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """½·Σ_k (t_k - p_k)² with p = softmax(output), averaged over the batch; shapes as in `cross_entropy`."""
    p = output.softmax(-1)
    if target.is_floating_point():
        t = target
    else:
        t = functional.one_hot(target, output.shape[-1])
        t = t / t.sum(-1, keepdim=True)  # 0/0 for what is no class in a program; PyTorch has raised an error by now
    return (t - p).square().sum(-1).mean() / 2


def mse(output: Tensor, target: Tensor) -> Tensor:
    """(output - target)², averaged over all elements; a target `[n]` also fits an output `[n, 1]`.

    Raises:
        ModelError: the shapes differ. Broadcasting them would train something else than was meant.
    """
    if output.shape == (*target.shape, 1):
        target = target.unsqueeze(-1)
    if output.shape != target.shape:
        raise ModelError(
            f"mse needs output and target of one shape, but the model gives {tuple(output.shape)} and the data "
            f"have {tuple(target.shape)}"
        )
    return (output - target).square().mean()


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "half-squared-error": half_squared_error, "mse": mse}

NAMES = {
    "cross-entropy": "for class labels: minus the logarithm of the label's softmax probability",
    "half-squared-error": "for class labels: half the squared distance of the softmax probabilities to the label",
    "mse": "for regression: the mean squared error of the output as it is",
}


def resolve(loss: str | Loss) -> Loss:
    """The loss of that name; a function is returned as it is.

    Raises:
        ConfigError: there is none of that name.
    """
    if callable(loss):
        return loss
    if loss in LOSSES:
        return LOSSES[loss]
    hint = did_you_mean(str(loss), LOSSES)
    raise ConfigError(f"no loss {loss!r}{hint}; there are: {', '.join(LOSSES)}, or give a function (output, target)")
