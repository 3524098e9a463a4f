"""The gradients of activations, by products instead of choices."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainpool.lowering.decompositions.base import aten, instead_of

__all__: list[str] = []


@instead_of(aten.threshold_backward.default)
def threshold_backward(dy: Tensor, y: Tensor, threshold: float) -> Tensor:
    """ReLU's gradient: a product, which is cheaper than a choice."""
    return dy * (y > threshold).to(dy.dtype)


@instead_of(aten.hardtanh_backward.default)
def hardtanh_backward(dy: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """1 strictly between the bounds."""
    return dy * ((x > low) & (x < high)).to(dy.dtype)


@instead_of(aten.leaky_relu_backward.default)
def leaky_relu_backward(dy: Tensor, x: Tensor, slope: float, result: bool) -> Tensor:
    """1 or the slope."""
    return dy * ((x > 0).to(dy.dtype) * (1 - slope) + slope)


@instead_of(aten.hardswish_backward.default)
def hardswish_backward(dy: Tensor, x: Tensor) -> Tensor:
    """0 below -3, 1 above 3, x/3 + 1/2 between."""
    inner = ((x > -3) & (x < 3)).to(dy.dtype)
    return dy * ((x >= 3).to(dy.dtype) + inner * (x / 3 + 0.5))


@instead_of(aten.hardsigmoid_backward.default)
def hardsigmoid_backward(dy: Tensor, x: Tensor) -> Tensor:
    """1/6 between -3 and 3."""
    return dy * (((x > -3) & (x < 3)).to(dy.dtype) * (1 / 6))


@instead_of(aten._prelu_kernel.default)
def prelu(x: Tensor, w: Tensor) -> Tensor:
    """Without a choice."""
    return x.clamp(min=0) + w * x.clamp(max=0)


@instead_of(aten._prelu_kernel_backward.default)
def prelu_backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """For x and for the weight."""
    up = (x > 0).to(dy.dtype)
    return dy * (up + w * (1 - up)), dy * x.clamp(max=0)


@instead_of(aten.softplus_backward.default)
def softplus_backward(dy: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    """The sigmoid; 1 where the function is the identity."""
    return dy * torch.maximum((x * beta).sigmoid(), (x * beta > threshold).to(dy.dtype))


@instead_of(aten.softplus.default)
def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(βx))/β without overflow; x itself where βx is above the threshold."""
    z = x * beta if beta != 1 else x
    y = z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))
    if threshold < 15:  # above, float32 does not see the difference
        above = (z > threshold).to(x.dtype)
        y = y * (1 - above) + z * above
    return y / beta if beta != 1 else y


@instead_of(aten.hardshrink_backward.default, aten.softshrink_backward.default)
def shrink_backward(dy: Tensor, x: Tensor, bound: float) -> Tensor:
    """1 outside of the bounds."""
    return dy * (x.abs() > bound).to(dy.dtype)


@instead_of(aten.var.correction)
def variance(x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    """The mean squared distance from the mean, of n less the correction."""
    axes = dim or list(range(x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    count = math.prod(x.shape[a] for a in axes)
    return centred.square().sum(axes, keepdim=keepdim) / max(0, count - (1 if correction is None else correction))


@instead_of(aten.linalg_vector_norm.default)
def vector_norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Of any order."""
    axes = list(range(x.dim())) if dim is None else dim
    x = x if dtype is None else x.to(dtype)
    if order == 2:
        return x.square().sum(axes, keepdim=keepdim).sqrt()
    if order == 1:
        return x.abs().sum(axes, keepdim=keepdim)
    if math.isinf(order):
        return x.abs().amax(axes, keepdim=keepdim) if order > 0 else x.abs().amin(axes, keepdim=keepdim)
    if order == 0:
        return (x != 0).to(x.dtype).sum(axes, keepdim=keepdim)
    return x.abs().pow(order).sum(axes, keepdim=keepdim).pow(1 / order)


@instead_of(aten.silu.default)
def silu(x: Tensor) -> Tensor:
    """x·σ(x)."""
    return x * x.sigmoid()


@instead_of(aten.silu_backward.default)
def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """σ·(1 + x·(1 - σ))."""
    s = x.sigmoid()
    return dy * (s * (1 + x * (1 - s)))


@instead_of(aten.gelu_backward.default)
def gelu_backward(dy: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """Of both forms."""
    if approximate == "tanh":
        k, c = math.sqrt(2 / math.pi), 0.044715
        t = torch.tanh(k * (x + c * x * x * x))
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (k * (1 + 3 * c * x * x)))
    cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return dy * (cdf + x * (torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))))


@instead_of(aten._log_softmax_backward_data.default)
def log_softmax_backward(dy: Tensor, y: Tensor, axis: int, kind: Any) -> Tensor:
    """dy - softmax·Σ dy."""
    return dy - y.exp() * dy.sum(axis, keepdim=True)


@instead_of(aten._softmax_backward_data.default)
def softmax_backward(dy: Tensor, y: Tensor, axis: int, kind: Any) -> Tensor:
    """y·(dy - Σ dy·y)."""
    z = dy * y
    return z - y * z.sum(axis, keepdim=True)


@instead_of(aten.mish_backward.default)
def mish_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Of x·tanh(softplus(x))."""
    t = torch.tanh(functional.softplus(x))
    return dy * (t + x * x.sigmoid() * (1 - t * t))
