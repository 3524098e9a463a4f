"""Matrix products, convolutions, pooling."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from trainpool.lowering.graph import NO_INDICES, Graph, Ref
from trainpool.lowering.operators import blocked
from trainpool.lowering.operators.base import TABLE, Shaped, unexpanded, writes
from trainpool.lowering.operators.shapes import cat, pad

__all__: list[str] = []


def transposed(g: Graph, x: Ref) -> tuple[Ref, int]:
    """A matrix, or what it is the transpose of, and 1 then: ONNX's Gemm transposes by itself."""
    kind, inputs = g.made.get(x.name, ("", ()))
    return (inputs[0], 1) if kind == "Transpose" and len(x.shape) == 2 else (x, 0)


@writes("mm", "addmm")
def mm(g: Graph, out: Any, a: Ref, b: Ref, c: Ref | None = None, beta: float = 1.0, alpha: float = 1.0) -> Ref:
    (a, ta), (b, tb) = transposed(g, a), transposed(g, b)
    flags: dict[str, Any] = {key: value for key, value in {"transA": ta, "transB": tb}.items() if value}
    extra: dict[str, Any] = {} if (alpha, beta) == (1, 1) else {"alpha": float(alpha), "beta": float(beta)}
    if not flags and c is None:
        return g.op("MatMul", a, b, shape=out.shape)
    return g.op("Gemm", a, b, *([] if c is None else [c]), shape=out.shape, **flags, **extra)


TABLE["addmm"] = lambda g, out, c, a, b, *, beta=1, alpha=1: mm(g, out, a, b, c, beta, alpha)


@writes("bmm")
def bmm(g: Graph, out: Any, a: Ref, b: Ref) -> Ref:
    return g.op("MatMul", unexpanded(g, a), unexpanded(g, b), shape=out.shape)


@writes("convolution")
def convolution(
    g: Graph, out: Any, x: Ref, w: Ref, b: Ref | None, stride: list[int], padding: list[int], dilation: list[int],
    is_transposed: bool, output_padding: list[int], groups: int,
) -> Ref:  # fmt: skip
    n = len(w.shape) - 2
    stride, padding, dilation, rest = (
        list(v) * n if len(v) == 1 else list(v) for v in (stride, padding, dilation, output_padding)
    )
    if n == 3 and groups > 1:  # graphics processors have no grouped ones
        one = Shaped((out.shape[0], out.shape[1] // groups, *out.shape[2:]))
        each = []
        for k in range(groups):
            xk, wk, bk = group(g, x, 1, k, groups), group(g, w, 0, k, groups), b and group(g, b, 0, k, groups)
            each.append(convolution(g, one, xk, wk, bk, stride, padding, dilation, is_transposed, rest, 1))
        return cat(g, out, each, 1)
    if n == 3 and is_transposed:
        return turned_round(g, out, x, w, b, stride, padding, dilation, rest)
    shape: dict[str, Any] = {
        "kernel_shape": list(w.shape[2:]),
        "strides": stride,
        "dilations": dilation,
        "group": groups,
    }
    if not is_transposed and blocked.blockable(g, w, groups):
        return blocked.convolution(g, out, x, w, b, stride, padding, dilation)
    if not is_transposed:
        return g.op("Conv", x, w, *([b] if b else []), shape=out.shape, pads=padding * 2, **shape)
    # Output padding makes the end's padding smaller; where it would be negative, ONNX has an attribute for it.
    ends = [p - r for p, r in zip(padding, rest, strict=True)]
    if min(ends) >= 0:
        return g.op("ConvTranspose", x, w, *([b] if b else []), shape=out.shape, pads=padding + ends, **shape)
    return g.op(
        "ConvTranspose", x, w, *([b] if b else []), shape=out.shape, pads=padding * 2, output_padding=rest, **shape
    )


def group(g: Graph, x: Ref, axis: int, number: int, groups: int) -> Ref:
    """One group of channels."""
    size = x.shape[axis] // groups
    return g.slice(x, [axis], [number * size], [(number + 1) * size])


def turned_round(
    g: Graph, out: Any, x: Ref, w: Ref, b: Ref | None, stride: list[int], padding: list[int], dilation: list[int],
    rest: list[int],
) -> Ref:  # fmt: skip
    """A transposed convolution as a convolution of the stretched input with the weight turned round.

    For three dimensions, where graphics processors have no other: Dumoulin and Visin 2016, "A guide to convolution
    arithmetic for deep learning", section 4.
    """
    x, many = stretched(g, x, stride), math.prod(w.shape[2:])
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    pads = [edge for r, p, q in zip(reach, padding, rest, strict=True) for edge in (r - p, r - p + q)]
    if min(pads) < 0:
        cut = [min(0, edge) for edge in pads]
        inner = [n + before + after for n, before, after in zip(x.shape[2:], cut[::2], cut[1::2], strict=True)]
        backward = [edge for axis in reversed(range(3)) for edge in cut[2 * axis : 2 * axis + 2]]
        x = pad(g, Shaped((*x.shape[:2], *inner)), x, backward)
        pads = [max(0, edge) for edge in pads]
    turned = g.permute(w, [1, 0, 2, 3, 4])
    if turned.constant is not None:
        turned = g.constant(turned.constant.flip(2, 3, 4))
    elif many > 1:
        rows = g.reshape(turned, (*turned.shape[:2], many))
        rows = g.op("Gather", rows, g.integers(*reversed(range(many))), shape=rows.shape, axis=2)
        turned = g.reshape(rows, turned.shape)
    return g.op(
        "Conv", x, turned, *([b] if b else []), shape=out.shape, kernel_shape=list(w.shape[2:]),
        strides=[1, 1, 1], dilations=dilation, group=1, pads=pads[::2] + pads[1::2],
    )  # fmt: skip


def stretched(g: Graph, x: Ref, stride: Sequence[int]) -> Ref:
    """`stride` - 1 zeros between the values along each axis after the first two."""
    for axis, s in enumerate(stride, 2):
        if s == 1:
            continue
        size, before, after = x.shape[axis], math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        rows = g.reshape(x, (before * size, 1, after))
        rows = pad(g, Shaped((before * size, s, after)), rows, [0, 0, 0, s - 1])
        rows = g.reshape(rows, (*x.shape[:axis], size * s, *x.shape[axis + 1 :]))
        x = g.slice(rows, [axis], [0], [(size - 1) * s + 1])
    return x


@writes("max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool(
    g: Graph, out: Any, x: Ref, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Any:
    values, indices = out
    n = 2 if values.kind.startswith("max_pool2d") else 3
    kernel, stride, padding, dilation = (
        [v] * n if isinstance(v, int) else list(v) * n if len(v) == 1 else list(v)
        for v in (kernel, stride or kernel, padding, dilation)
    )
    whole = x if len(x.shape) == n + 2 else g.reshape(x, (1, *x.shape))
    ends = []
    for size, place, k, s, p, d in zip(
        whole.shape[2:], values.shape[-n:], kernel, stride, padding, dilation, strict=True
    ):
        ends.append(max(0, (place - 1) * s + d * (k - 1) + 1 - size - p))
    shape = (*whole.shape[:2], *values.shape[-n:])
    y = g.op(
        "MaxPool", whole, shape=shape, kernel_shape=kernel, strides=stride, pads=padding + ends,
        **({} if set(dilation) == {1} else {"dilations": dilation}),
    )  # fmt: skip
    return g.reshape(y, values.shape), Ref(NO_INDICES, tuple(indices.shape), torch.int64)


@writes("avg_pool2d", "avg_pool3d")
def avg_pool(g: Graph, out: Any, x: Ref, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Ref:
    n = len(x.shape) - 2
    kernel, stride = ([v] * n if isinstance(v, int) else list(v) * n if len(v) == 1 else list(v)
                      for v in (kernel, stride or kernel))  # fmt: skip
    return g.op("AveragePool", x, shape=out.shape, kernel_shape=kernel, strides=stride)


@writes("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def upsample(g: Graph, out: Any, x: Ref, size: list[int], *scales: Any) -> Ref:
    factors = [1.0, 1.0, *(p / s for s, p in zip(x.shape[2:], size, strict=True))]
    how: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return g.op("Resize", x, None, g.constant(torch.tensor(factors)), shape=out.shape, **how)
