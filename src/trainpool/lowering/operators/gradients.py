"""The gradients of a convolution."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from trainpool.lowering.graph import Graph, Ref
from trainpool.lowering.operators import blocked
from trainpool.lowering.operators.base import Shaped, writes
from trainpool.lowering.operators.products import convolution
from trainpool.lowering.operators.shapes import cat, pad

__all__: list[str] = []

NARROW = 8
"""Input channels below which all taps of a kernel share one product, so that it is not too narrow."""


@writes("convolution_backward")
def convolution_backward(
    g: Graph, out: Any, dy: Ref, x: Ref, w: Ref, bias_sizes: Any, stride: list[int], padding: list[int],
    dilation: list[int], is_transposed: bool, output_padding: list[int], groups: int, mask: list[bool],
) -> tuple[Ref | None, Ref | None, Ref | None]:  # fmt: skip
    """For input, weight and bias."""
    n = len(w.shape) - 2
    stride, padding, dilation = (list(v) * n if len(v) == 1 else list(v) for v in (stride, padding, dilation))
    zero = [0] * n
    dx = dw = db = None
    if mask[0] and not is_transposed and blocked.blockable(g, w, groups):
        dx = blocked.input_gradient(g, out[0], dy, w, stride, padding, dilation)
    if mask[1] and not is_transposed and blocked.blockable(g, w, groups, narrow=True):
        dw = blocked.weight_gradient(g, out[1], x, dy, w.shape[2:], stride, padding, dilation)
    if mask[0] and dx is None and is_transposed:
        dx = convolution(g, out[0], dy, w, None, stride, padding, dilation, False, zero, groups)
    elif mask[0] and dx is None:
        # A product with the weight as it lies: faster than a convolution with the weight turned round.
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
        full = [(o - 1) * s - 2 * p + r for o, s, p, r in zip(dy.shape[2:], stride, padding, reach, strict=True)]
        rest = [size - part for size, part in zip(x.shape[2:], full, strict=True)]
        dx = convolution(g, out[0], dy, w, None, stride, padding, dilation, True, rest, groups)
    if mask[1] and dw is None:
        a, b = (dy, x) if is_transposed else (x, dy)
        dw = weight_gradient(g, out[1], a, b, w.shape[2:], stride, padding, dilation, groups)
    if mask[2]:
        axes = [0, *range(2, len(dy.shape))]
        db = g.op("ReduceSum", dy, g.integers(*axes), shape=out[2].shape, keepdims=0)
    return dx, dw, db


def weight_gradient(
    g: Graph, out: Any, x: Ref, dy: Ref, kernel: Sequence[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Ref:  # fmt: skip
    """Σ over samples and places of dy · (x seen through each tap of the kernel): one matrix product a tap."""
    samples, channels, filters = x.shape[0], x.shape[1], dy.shape[1]
    axes = list(range(2, len(x.shape)))
    wide = [size + 2 * p for size, p in zip(x.shape[2:], padding, strict=True)]
    pads = [p for size in reversed(padding) for p in (size, size)]
    rows = g.permute(x, [1, 0, *axes])  # [I, n, *]
    rows = pad(g, Shaped((channels, samples, *wide)), rows, pads)
    places = dy.shape[2:]
    size = samples * math.prod(places)
    taps = []
    for offsets in itertools.product(*(range(k) for k in kernel)):
        starts = [offset * d for offset, d in zip(offsets, dilation, strict=True)]
        ends = [a + (place - 1) * s + 1 for a, place, s in zip(starts, places, stride, strict=True)]
        whole = all(a == 0 and b == w for a, b, w in zip(starts, ends, wide, strict=True)) and set(stride) == {1}
        taps.append(rows if whole else g.slice(rows, axes, starts, ends, stride))
    d = g.permute(dy, [1, 0, *axes])
    i, o = channels // groups, filters // groups
    if groups == 1:
        d = g.reshape(d, (filters, size))
        columns = [g.reshape(tap, (channels, size)) for tap in taps]
        if channels < NARROW:
            together = cat(g, Shaped((channels * len(taps), size)), columns)
            product = g.op("Gemm", together, d, shape=(len(taps) * channels, filters), transB=1)
            dw = g.permute(g.reshape(product, (len(taps), channels, filters)), [2, 1, 0])
            return g.reshape(dw, out.shape)
        each = [g.op("Gemm", d, column, shape=(filters, channels), transB=1) for column in columns]
    else:
        d = g.reshape(d, (groups, o, size))
        each = []
        for tap in taps:
            column = g.permute(g.reshape(tap, (groups, i, size)), [0, 2, 1])
            each.append(g.op("MatMul", d, column, shape=(groups, o, i)))
    parts = [g.reshape(part, (filters, i, 1)) for part in each]
    return g.reshape(cat(g, Shaped((filters, i, len(taps))), parts, 2), out.shape)
