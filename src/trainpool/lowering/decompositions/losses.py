"""Negative log-likelihood and embeddings as products with one-hot matrices."""

from typing import Any

import torch
from torch import Tensor

from trainpool.lowering.decompositions.base import aten, instead_of
from trainpool.lowering.decompositions.normalisation import along_channels

__all__: list[str] = []


def classes_of(x: Tensor, target: Tensor) -> Tensor:
    """1 at each sample's class, `[n, C, ...]`; nothing where the target is no class."""
    axis = 1 if x.dim() > 1 else 0
    classes = torch.arange(x.shape[axis], dtype=target.dtype)
    shape = [1] * x.dim()
    shape[axis] = -1
    return (target.unsqueeze(axis) == classes.reshape(shape)).to(x.dtype)


def weighted(x: Tensor, found: Tensor, target: Tensor, weight: Tensor | None, ignore: int) -> Tensor:
    """`classes_of` times their classes' weights, nothing at a class to ignore."""
    axis = 1 if x.dim() > 1 else 0
    if 0 <= ignore < x.shape[axis]:
        found = found * (target != ignore).to(x.dtype).unsqueeze(axis)
    return found if weight is None else found * (along_channels(weight, x) if x.dim() > 1 else weight)


@instead_of(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Minus each sample's value at its class: none (0), mean (1) or sum (2); also the weights' sum.

    Not a number where a target is neither a class nor to be ignored: PyTorch raises an error then.
    """
    axis = 1 if x.dim() > 1 else 0
    hits = classes_of(x, target)
    found, known = weighted(x, hits, target, weight, ignore), hits.sum(axis)
    if not 0 <= ignore < x.shape[axis]:
        known = known + (target == ignore).to(x.dtype)
    each, total = -(x * found).sum(axis) / known, found.sum()
    if reduction == 0:
        return each, torch.zeros([], dtype=x.dtype)
    return each.sum() / total if reduction == 1 else each.sum(), total


@instead_of(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(
    dy: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int, total: Tensor
) -> Tensor:
    """Minus the weights."""
    found = weighted(x, classes_of(x, target), target, weight, ignore)
    if reduction == 0:
        return -found * dy.unsqueeze(1 if x.dim() > 1 else 0)
    return found * (-dy / total if reduction == 1 else -dy)


@instead_of(aten.embedding_dense_backward.default)
def embedding_backward(dy: Tensor, indices: Tensor, rows: int, padding: int, scaled: bool) -> Any:
    """One product with the one-hot matrix of the indices: no scatter."""
    if scaled:
        return NotImplemented
    numbers = torch.arange(rows, dtype=indices.dtype).unsqueeze(1)
    flat = indices.reshape(1, -1)
    found = (numbers == flat).to(dy.dtype)
    if 0 <= padding < rows:
        found = found * (numbers != padding).to(dy.dtype)
    return torch.mm(found, dy.reshape(-1, dy.shape[-1]))
