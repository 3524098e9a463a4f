"""Normalisation and its gradients: few passes over the activations."""

from typing import Any

import torch
from torch import Tensor

from trainpool.lowering.decompositions.base import aten, instead_of

__all__ = ["along_channels"]


@instead_of(aten.native_group_norm.default)
def group_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, n: int, c: int, size: int, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's groups of channels to mean 0 and variance 1, then scale and shift: also mean and 1/deviation."""
    rows, channels = x.reshape(n, groups, -1), (groups, c // groups)
    mean = rows.mean(2, keepdim=True)  # [n, G, 1]
    rstd = ((rows - mean).square().mean(2, keepdim=True) + epsilon).rsqrt()
    scale = rstd.expand(n, *channels) if w is None else rstd * w.reshape(1, *channels)
    shift = -mean * scale if b is None else b.reshape(1, *channels) - mean * scale
    y = x.reshape(n, c, size) * scale.reshape(n, c, 1) + shift.reshape(n, c, 1)
    return y.reshape(x.shape), mean.reshape(n, groups), rstd.reshape(n, groups)


@instead_of(aten.native_group_norm_backward.default)
def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    w: Tensor | None,
    n: int,
    c: int,
    size: int,
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = rstd·(w·dy - mean(w·dy) - x̂·mean(w·dy·x̂)), by one number a channel and two a group."""
    channels = (n, groups, c // groups)
    rows, mean, rstd = dy.reshape(*channels, size), mean.unsqueeze(2), rstd.unsqueeze(2)
    total = rows.sum(3)  # [n, G, C/G]
    along = ((rows * x.reshape(rows.shape)).sum(3) - total * mean) * rstd  # Σ dy·x̂
    dx = None
    if mask[0]:
        weight = torch.ones(1) if w is None else w.reshape(1, *channels[1:])
        each = rstd * (-1 / (size * channels[2]))
        slope = (along * weight).sum(2, keepdim=True) * (each * rstd)  # [n, G, 1]
        shift = (total * weight).sum(2, keepdim=True) * each - mean * slope
        line = x.reshape(n, groups, -1) * slope + shift
        dx = (rows * (rstd * weight).unsqueeze(3)).reshape(x.shape) + line.reshape(x.shape)
    return dx, along.sum(0).reshape(c) if mask[1] else None, total.sum(0).reshape(c) if mask[2] else None


@instead_of(aten.native_layer_norm.default)
def layer_norm(
    x: Tensor, shape: list[int], w: Tensor | None, b: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the last axes."""
    axes = list(range(-len(shape), 0))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    rstd = (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    y = centred * rstd
    y = y if w is None else y * w
    return y if b is None else y + b, mean, rstd


@instead_of(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    shape: list[int],
    mean: Tensor,
    rstd: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `group_norm_backward`, with a weight an element."""
    axes, rest = list(range(-len(shape), 0)), list(range(x.dim() - len(shape)))
    normal = (x - mean) * rstd
    scaled = dy if w is None else dy * w
    dx = dw = db = None
    if mask[0]:
        dx = rstd * (scaled - scaled.mean(axes, keepdim=True) - normal * (scaled * normal).mean(axes, keepdim=True))
    if mask[1]:
        dw = (dy * normal).sum(rest).reshape(shape) if rest else dy * normal
    if mask[2]:
        db = dy.sum(rest).reshape(shape) if rest else dy
    return dx, dw, db


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """`[C]` as `[1, C, 1, ...]`."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def normalized(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BatchNorm's output, the mean, 1/deviation and the batch's variance (of n, not n - 1)."""
    axes = [0, *range(2, x.dim())]
    if training:
        mean = x.mean(axes)
        centred = x - along_channels(mean, x)
        var = centred.square().mean(axes)
    else:
        assert mean is not None
        assert var is not None
        centred = x - along_channels(mean, x)
    rstd = (var + epsilon).rsqrt()
    y = centred * along_channels(rstd if w is None else rstd * w, x)
    return y if b is None else y + along_channels(b, x), mean, rstd, var


def updated(
    x: Tensor, mean: Tensor | None, var: Tensor | None, m: Tensor, v: Tensor, momentum: float
) -> tuple[Tensor | None, Tensor | None]:
    """The running statistics after a batch."""
    count = x.numel() // x.shape[1]
    new_mean = None if mean is None else momentum * m + (1 - momentum) * mean
    new_var = None if var is None else momentum * (count / (count - 1)) * v + (1 - momentum) * var
    return new_mean, new_var


@instead_of(aten.native_batch_norm.default, aten._native_batch_norm_legit.default)
def batch_norm(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Changes the running statistics in place, as PyTorch does."""
    y, m, rstd, v = normalized(x, w, b, mean, var, training, epsilon)
    if not training:
        return y, x.new_empty(0), x.new_empty(0)
    new_mean, new_var = updated(x, mean, var, m, v, momentum)
    if mean is not None and new_mean is not None:
        mean.copy_(new_mean)
    if var is not None and new_var is not None:
        var.copy_(new_var)
    return y, m, rstd


@instead_of(aten._native_batch_norm_legit.no_stats)
def batch_norm_without_statistics(
    x: Tensor, w: Tensor | None, b: Tensor | None, training: bool, momentum: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's own statistics."""
    y, m, rstd, _ = normalized(x, w, b, None, None, True, epsilon)
    return y, m, rstd


@instead_of(aten._native_batch_norm_legit_functional.default)
def batch_norm_functional(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Any, ...]:
    """The new running statistics are results."""
    y, m, rstd, v = normalized(x, w, b, mean, var, training, epsilon)
    if not training:
        return y, x.new_empty(0), x.new_empty(0), mean, var
    return y, m, rstd, *updated(x, mean, var, m, v, momentum)


@instead_of(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor | None,
    mean: Any,
    var: Any,
    m: Any,
    rstd: Any,
    training: bool,
    epsilon: float,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """One number a channel times dy, x and 1."""
    axes, count = [0, *range(2, x.dim())], x.numel() // x.shape[1]
    m, rstd = (m, rstd) if training else (mean, (var + epsilon).rsqrt())
    centred = x - along_channels(m, x)
    total = dy.sum(axes)
    along = (dy * centred).sum(axes) * rstd  # Σ dy·x̂
    dx = None
    if mask[0]:
        gain = rstd if w is None else rstd * w
        dx = dy * along_channels(gain, x)
        if training:
            slope, shift = -gain * rstd * along / count, -gain * total / count
            dx = dx + (centred * along_channels(slope, x) + along_channels(shift, x))
    return dx, along if mask[1] else None, total if mask[2] else None
