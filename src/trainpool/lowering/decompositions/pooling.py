"""Pooling where ONNX is slow or differs, and its gradients, without indices."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainpool.lowering.decompositions.base import aten, constant, instead_of, separable, tree_cat

__all__: list[str] = []


@constant
def one_hot_windows(kernel: list[int]) -> Tensor:
    """The weight that puts each tap's channel back to its place: `[taps, 1, *kernel]`."""
    return torch.eye(math.prod(kernel)).reshape(-1, 1, *kernel)


@constant
def ranks(kernel: list[int], places: list[int]) -> Tensor:
    """In every window, numbers that fall from its first place to its last."""
    return torch.arange(math.prod(kernel), 0, -1, dtype=torch.float32).reshape(kernel).repeat(places)


@constant
def ones_window(kernel: list[int]) -> Tensor:
    """The weight of a transposed convolution that spreads each value over its window."""
    return torch.ones((1, 1, *kernel))


def widened(values: list[int] | int, n: int, default: list[int] | None = None) -> list[int]:
    """One number an axis from PyTorch's short forms."""
    found = [values] if isinstance(values, int) else list(values)
    return found * n if len(found) == 1 else found or list(default or [])


@instead_of(aten.max_pool2d_with_indices_backward.default, aten.max_pool3d_with_indices_backward.default)
def max_pool_backward(
    dy: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: Tensor
) -> Tensor:
    """Each window's gradient goes to its first maximum, without any index."""
    n = x.dim() - 2 if x.dim() > 3 else x.dim() - 1
    if x.dim() == n + 1:
        whole = max_pool_backward(dy[None], x[None], kernel, stride, padding, dilation, ceil, indices[None])
        return whole[0]
    kernel = widened(kernel, n)
    stride, padding, dilation = widened(stride, n, kernel), widened(padding, n), widened(dilation, n)
    forward = aten.max_pool2d_with_indices if n == 2 else aten.max_pool3d_with_indices
    y = forward(x, kernel, stride, padding, dilation, ceil)[0]
    places = list(dy.shape[2:])
    whole = [p * k for p, k in zip(places, kernel, strict=True)]
    apart = stride == kernel and not any(padding) and all(d == 1 for d in dilation)
    if apart and all(w <= s for w, s in zip(whole, x.shape[2:], strict=True)):
        return apart_backward(dy, x, y, kernel, places, whole, forward)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = []
    for size, place, s, p, r in zip(x.shape[2:], places, stride, padding, reach, strict=True):
        pads.append((p, max(0, (place - 1) * s + r + 1 - size - p)))
    low = torch.finfo(x.dtype).min
    padded = functional.pad(x, [q for pair in reversed(pads) for q in pair], value=low)
    left, shares = dy, []
    for offsets in itertools.product(*(range(k) for k in kernel)):
        tap = padded
        for axis, (offset, place, s, d) in enumerate(zip(offsets, places, stride, dilation, strict=True)):
            tap = tap.narrow(2 + axis, offset * d, (place - 1) * s + 1)
            tap = tap[(*[slice(None)] * (2 + axis), slice(None, None, s))] if s > 1 else tap
        share = left * (tap == y).to(dy.dtype)  # whoever comes first takes all that is left
        left = left - share
        shares.append(share.unsqueeze(2))
    spread = one_hot_windows(kernel).to(x.dtype)
    return spread_out(tree_cat(shares, 2), spread, stride, dilation, pads, list(x.shape[2:]))


def apart_backward(
    dy: Tensor, x: Tensor, y: Tensor, kernel: list[int], places: list[int], whole: list[int], forward: Any
) -> Tensor:
    """Windows that neither overlap nor leave gaps: everything stays at the input's places.

    Where x equals its window's maximum, a number that falls from the window's first place to its last; the largest of
    them in the window marks the first maximum.
    """
    x0 = x
    for axis, size in enumerate(whole):
        x = x.narrow(2 + axis, 0, size) if x.shape[2 + axis] > size else x
    marks = (x == enlarge(y, whole)).to(x.dtype) * ranks(kernel, places).to(x.dtype)
    first = forward(marks, kernel, kernel)[0]
    chosen = (marks == enlarge(first, whole)).to(x.dtype)
    dx = chosen * enlarge(dy, whole)
    rest = [size - part for size, part in zip(x0.shape[2:], whole, strict=True)]
    return functional.pad(dx, [q for r in reversed(rest) for q in (0, r)]) if any(rest) else dx


def enlarge(x: Tensor, size: list[int]) -> Tensor:
    """Every value repeated over its window."""
    if len(size) == 2 and size[0] == x.shape[2]:  # a one-dimensional pooling in disguise: ONNX Runtime wants two axes
        return aten.upsample_nearest1d(x.squeeze(2), size[1:]).unsqueeze(2)
    return aten.upsample_nearest2d(x, size) if len(size) == 2 else aten.upsample_nearest3d(x, size)


def spread_out(y: Tensor, weight: Tensor, stride: list[int], dilation: list[int], pads: Any, size: list[int]) -> Tensor:
    """Put windows back to their places, summed where they overlap: a transposed convolution, cut to `size`.

    `y` is [samples, channels, taps or 1, *places]; `weight` is [taps or 1, 1, *kernel].
    """
    n, (samples, channels) = len(size), y.shape[:2]
    alone = y.reshape(samples * channels, weight.shape[0], *y.shape[3:])
    full = aten.convolution(alone, weight, None, stride, [0] * n, dilation, True, [0] * n, 1)
    full = full.reshape(samples, channels, *full.shape[2:])
    edges = []
    for axis, (before, _) in enumerate(pads):
        edges.append((-before, size[axis] - (full.shape[2 + axis] - before)))
    return functional.pad(full, [q for pair in reversed(edges) for q in pair]) if any(map(any, edges)) else full


@instead_of(aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default)
def avg_pool_backward(
    dy: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil: bool, include: bool, divisor: int | None
) -> Tensor:
    """Each window's gradient in equal shares."""
    n = x.dim() - 2 if x.dim() > 3 else x.dim() - 1
    if x.dim() == n + 1:
        return avg_pool_backward(dy[None], x[None], kernel, stride, padding, ceil, include, divisor)[0]
    kernel = widened(kernel, n)
    stride, padding = widened(stride, n, kernel), widened(padding, n)
    counts = window_counts(list(x.shape[2:]), list(dy.shape[2:]), kernel, stride, padding, include)
    share = dy / divisor if divisor else dy * counts.to(dy.dtype)
    pads = [(p, 0) for p in padding]
    window = ones_window(kernel).to(x.dtype)
    return spread_out(share.unsqueeze(2), window, stride, [1] * n, pads, list(x.shape[2:]))


@constant
def window_counts(
    size: list[int], places: list[int], kernel: list[int], stride: list[int], padding: list[int], include: bool
) -> Tensor:
    """One over what each window's sum is divided by: `[*places]`."""
    counts = torch.ones([])
    for length, place, k, s, p in zip(size, places, kernel, stride, padding, strict=True):
        starts = [i * s - p for i in range(place)]
        ends = [min(start + k, length + p) for start in starts]
        if not include:
            starts, ends = [max(0, a) for a in starts], [min(b, length) for b in ends]
        counts = counts.unsqueeze(-1) * torch.tensor([float(b - a) for a, b in zip(starts, ends, strict=True)])
    return 1 / counts


@instead_of(aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(
    x: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    include: bool = True,
    divisor: int | None = None,
) -> Any:
    """With padding or a ceiling, where runtimes disagree: the windows' sums over their counts."""
    n = x.dim() - 2 if x.dim() > 3 else x.dim() - 1
    kernel = widened(kernel, n)
    stride, padding = widened(stride, n, kernel), widened(padding, n)
    if x.dim() == n + 1:
        return avg_pool(x[None], kernel, stride, padding, ceil, include, divisor)[0]
    if not any(padding) and not ceil and divisor is None:
        return NotImplemented
    places = []
    for size, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        place = (size + 2 * p - k + (s - 1 if ceil else 0)) // s + 1
        places.append(place - 1 if ceil and (place - 1) * s >= size + p else place)
    pads = [
        (p, max(0, (place - 1) * s + k - size - p))
        for size, place, k, s, p in zip(x.shape[2:], places, kernel, stride, padding, strict=True)
    ]
    padded = functional.pad(x, [q for pair in reversed(pads) for q in pair])
    for axis, (place, s, k) in enumerate(zip(places, stride, kernel, strict=True)):
        padded = padded.narrow(2 + axis, 0, (place - 1) * s + k)
    plain = aten.avg_pool2d if n == 2 else aten.avg_pool3d
    total = plain(padded, kernel, stride) * math.prod(kernel)
    if divisor:
        return total / divisor
    return total * window_counts(list(x.shape[2:]), places, kernel, stride, padding, include).to(x.dtype)


@constant
def windows_matrix(size: int, places: int) -> Tensor:
    """Adaptive averaging along one axis: `[places, size]`."""
    matrix = torch.zeros(places, size)
    for i in range(places):
        start, end = i * size // places, -(-(i + 1) * size // places)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@instead_of(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def adaptive_avg_pool(x: Tensor, size: list[int]) -> Tensor:
    """A mean, or a matrix an axis."""
    n = len(size)
    if all(s == 1 for s in size):
        return x.mean(list(range(-n, 0)), keepdim=True)
    return separable(x, [windows_matrix(s, p) for s, p in zip(x.shape[-n:], size, strict=True)])


@instead_of(aten._adaptive_avg_pool2d_backward.default, aten._adaptive_avg_pool3d_backward.default)
def adaptive_avg_pool_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Back along each axis."""
    n = 2 if dy.dim() < 5 else 3
    if all(s == 1 for s in dy.shape[-n:]):
        return (dy / math.prod(x.shape[-n:])).expand(x.shape)
    return separable(dy, [windows_matrix(s, p).t() for s, p in zip(x.shape[-n:], dy.shape[-n:], strict=True)])


@instead_of(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(x: Tensor, size: list[int]) -> Any:
    """Windows of one size, where they divide the input."""
    kernel = [s // p for s, p in zip(x.shape[-len(size) :], size, strict=True)]
    if any(s % p for s, p in zip(x.shape[-len(size) :], size, strict=True)):
        return NotImplemented
    return (aten.max_pool2d_with_indices if len(size) == 2 else aten.max_pool3d_with_indices)(x, kernel, kernel)


@instead_of(aten.adaptive_max_pool2d_backward.default, aten.adaptive_max_pool3d_backward.default)
def adaptive_max_pool_backward(dy: Tensor, x: Tensor, indices: Tensor) -> Any:
    """Back from windows of one size."""
    n = 2 if dy.dim() < 5 else 3
    kernel = [s // p for s, p in zip(x.shape[-n:], dy.shape[-n:], strict=True)]
    if any(s % p for s, p in zip(x.shape[-n:], dy.shape[-n:], strict=True)):
        return NotImplemented
    return max_pool_backward(dy, x, kernel, kernel, [0] * n, [1] * n, False, indices)
