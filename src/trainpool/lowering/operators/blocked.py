"""Convolutions in ONNX Runtime's blocked memory order, [n, channels/B, height, width, B]: its fastest on a processor.

ONNX Runtime goes over to that order by itself, but only where weights are constants, so never in a training step. Here
it is written out, with the operators that it uses then. They exist on processors alone, and B is the machine's: a
program holds such a graph beside the plain one (`trainpool.program.BLOCKED`).

To ONNX Runtime a blocked value has the shape of the plain one; what its memory means is known to its operators alone.
A reshape therefore is free to see [n, channels/B, height, width·B], and a product of any two tensors that lie in memory
as an input and a weight would is a convolution: that is how the gradient of a weight is taken.
"""

from collections.abc import Sequence
from typing import Any

from trainpool.lowering.graph import BLOCKS, Graph, Ref
from trainpool.lowering.operators.base import Shaped
from trainpool.lowering.operators.shapes import cat, pad

__all__ = ["blockable", "convolution", "input_gradient", "weight_gradient"]


def blockable(g: Graph, w: Ref, groups: int) -> bool:
    """Whether a convolution with this weight `[out, in, height, width]` can be written so."""
    return bool(g.block) and groups == 1 and len(w.shape) == 4 and not (w.shape[0] % g.block or w.shape[1] % g.block)


def to_blocks(g: Graph, x: Ref) -> Ref:
    """The same values `[n, channels, height, width]` in the blocked order."""
    return g.op("ReorderInput", x, domain=BLOCKS)


def product(g: Graph, out: Any, x: Ref, w: Ref, *bias: Ref, **how: Any) -> Ref:
    """A convolution, all in the blocked order."""
    return g.op(
        "Conv", x, w, *bias, shape=out.shape, domain=BLOCKS, kernel_shape=list(w.shape[2:]), group=1, **how
    )  # fmt: skip


def from_blocks(g: Graph, y: Ref) -> Ref:
    """Back to the plain order."""
    return g.op("ReorderOutput", y, domain=BLOCKS, channels=y.shape[1])


def weight_blocks(g: Graph, w: Ref, turn: bool = False) -> Ref:
    """A weight as blocked products want it, [out/B, in/B, height, width, B in, B out]; `turn` swaps in and out."""
    b, (o, i, *kernel) = g.block, w.shape
    parts = g.reshape(w, (o // b, b, i // b, b, *kernel))
    parts = g.permute(parts, [2, 0, 4, 5, 1, 3] if turn else [0, 2, 4, 5, 3, 1])
    return g.reshape(parts, (i, o, *kernel) if turn else (o, i, *kernel))


def convolution(
    g: Graph, out: Any, x: Ref, w: Ref, b: Ref | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Ref:
    """Forward."""
    bias = [] if b is None else [b]
    how = {"strides": stride, "pads": padding * 2, "dilations": dilation}
    return from_blocks(g, product(g, out, to_blocks(g, x), weight_blocks(g, w), *bias, **how))


def input_gradient(
    g: Graph, out: Any, dy: Ref, w: Ref, stride: list[int], padding: list[int], dilation: list[int]
) -> Ref | None:
    """The gradient of the input: a convolution with the weight turned round; None where it is none (strides)."""
    pads = [d * (k - 1) - p for d, k, p in zip(dilation, w.shape[2:], padding, strict=True)]
    if set(stride) != {1} or min(pads) < 0:
        return None
    turned = g.slice(w, [2, 3], [-1, -1], [-w.shape[2] - 1, -w.shape[3] - 1], [-1, -1])
    how = {"strides": stride, "pads": pads * 2, "dilations": dilation}
    return from_blocks(g, product(g, out, to_blocks(g, dy), weight_blocks(g, turned, turn=True), **how))


def row(wide: int, block: int) -> int:
    """The smallest width, from this one on, of which a whole number makes a block, or which is a number of blocks."""
    return -(-wide // block) * block if wide > block else next(size for size in (1, 2, 4, 8, 16) if size >= wide)


def weight_gradient(
    g: Graph, out: Any, x: Ref, dy: Ref, kernel: Sequence[int], stride: list[int], padding: list[int],
    dilation: list[int],
) -> Ref | None:  # fmt: skip
    """Σ over samples n and places (h, u) of dy[n, o, h, u] · x[n, i, h·s + a·d - p, u·s + c·d - p], for taps (a, c).

    For one column c of the kernel that is a convolution of x, whose channels are (n, u) and whose places are
    (row, i), with dy as its weight, as high as dy: its rows of results are the kernel's. With u·s + c·d - p =
    (u + moved)·s + phase, x is every s-th column from `phase` on, and dy is moved. None where the sizes do not fit, and
    for a kernel of one tap, which is a plain product already.
    """
    block, (n, i, high, wide), (_, o, rows, columns) = g.block, x.shape, dy.shape
    moves = [divmod(column * dilation[1] - padding[1], stride[1]) for column in range(kernel[1])]
    width = row(-(-wide // stride[1]), block)
    many, each = max(1, block // width), max(1, width // block)  # samples in a block of (n, u); blocks of a row
    bottom = (kernel[0] - 1) * dilation[0] + (rows - 1) * stride[0] + 1 - high - padding[0]
    if n % many or bottom < 0 or max(kernel) == 1 or (stride[0] > 1 and each > 1):
        return None
    deep = n // many  # blocks of samples
    x = pad(g, Shaped((n, i, high, width * stride[1])), x, [0, width * stride[1] - wide])
    phases = {}
    for phase in {phase for _, phase in moves}:
        part = x if stride[1] == 1 else g.slice(x, [3], [phase], [width * stride[1]], [stride[1]])
        beside = [g.slice(part, [0], [k * deep], [(k + 1) * deep]) for k in range(many)] if many > 1 else [part]
        part = cat(g, Shaped((deep, i, high, many * width)), beside, 3)
        part = g.permute(g.reshape(part, (deep, i, high * each, block)), [0, 2, 1, 3])
        phases[phase] = g.reshape(part, (1, deep * block, high * each, i))
    d = g.permute(g.reshape(to_blocks(g, dy), (n, o // block, rows, columns * block)), [1, 0, 2, 3])
    d = g.reshape(d, (o // block * n, rows, columns * block))
    before = max(0, *(moved for moved, _ in moves))
    after = max(0, *(width - moved - columns for moved, _ in moves))
    total = before + columns + after
    d = pad(g, Shaped((*d.shape[:2], total * block)), d, [before * block, after * block])
    how = {
        "strides": [dilation[0] * each, 1],
        "pads": [padding[0] * each, 0, bottom * each, 0],
        "dilations": [stride[0], 1],
    }
    parts = []
    for moved, phase in moves:
        start = (before - moved) * block
        part = g.slice(d, [2], [start], [start + width * block])
        if many > 1:
            part = g.permute(g.reshape(part, (o // block, many, deep * rows, width * block)), [0, 2, 1, 3])
        weight = g.reshape(part, (o, deep * block, rows * each, 1))
        part = product(g, Shaped((1, o, kernel[0], i)), phases[phase], weight, **how)
        parts.append(g.reshape(part, (1, o // block, kernel[0], i, block)))
    together = cat(g, Shaped((kernel[1], *parts[0].shape[1:])), parts)
    return g.reshape(g.permute(together, [1, 4, 3, 2, 0]), out.shape)
