"""Convolutions in ONNX Runtime's blocked memory order, [n, channels/B, height, width, B]: its fastest on a processor.

ONNX Runtime goes over to that order by itself, but only where weights are constants, so never in a training step. Here
it is written out, with the operators that it uses then. They exist on processors alone, and B is the machine's: a
program holds such a graph beside the plain one (`trainpool.program.BLOCKED`).

To ONNX Runtime a blocked value has the shape of the plain one; what its memory means is known to its operators alone.
A reshape therefore is free to see [n, channels/B, height, width·B], and a product of any two tensors that lie in memory
as an input and a weight would is a convolution: that is how the gradient of a weight is taken.
"""

import math
from collections.abc import Sequence
from typing import Any

from trainpool.lowering.graph import BLOCKS, Graph, Ref
from trainpool.lowering.operators.base import Shaped
from trainpool.lowering.operators.shapes import cat, flip, pad

__all__ = ["blockable", "convolution", "input_gradient", "weight_gradient"]


def blockable(g: Graph, w: Ref, groups: int, narrow: bool = False) -> bool:
    """Whether a convolution with this weight `[out, in, height, width]` can be written so; `narrow` takes any `in`."""
    if not g.block or groups != 1 or len(w.shape) != 4 or w.shape[0] % g.block:
        return False
    return narrow or w.shape[1] % g.block == 0


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
    """A weight as blocked products want it, [out/B, in/B, height, width, B in, B out].

    `turn` swaps in and out, and turns the kernel round.
    """
    b, (o, i, *kernel) = g.block, w.shape
    taps = math.prod(kernel)
    # Step by step, each one a kind of transposition that ONNX Runtime is fast at: together they take a tenth of one.
    inner = g.permute(g.reshape(w, (o * i // b, b, taps)), [0, 2, 1])
    if turn:
        parts = g.reshape(flip(g, inner, inner, [1]), (o // b, b, i // b, taps, b))
        return g.reshape(g.permute(parts, [2, 0, 3, 1, 4]), (i, o, *kernel))
    return g.reshape(g.permute(g.reshape(inner, (o // b, b, i * taps)), [0, 2, 1]), w.shape)


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
    how = {"strides": stride, "pads": pads * 2, "dilations": dilation}
    return from_blocks(g, product(g, out, to_blocks(g, dy), weight_blocks(g, w, turn=True), **how))


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
    phases = {}
    if stride[1] == 1 and wide == width and i % block == 0:
        # Step by step, from the blocks that the forward pass has made.
        part = g.permute(g.reshape(to_blocks(g, x), (many, deep * i // block * high, wide * block)), [1, 0, 2])
        part = g.permute(g.reshape(part, (deep * i // block * high * each, block, block)), [0, 2, 1])
        part = g.permute(g.reshape(part, (deep, i // block, high * each, block * block)), [0, 2, 1, 3])
        phases[0] = g.reshape(part, (1, deep * block, high * each, i))
    else:
        x = pad(g, Shaped((n, i, high, width * stride[1])), x, [0, width * stride[1] - wide])
        for phase in {phase for _, phase in moves}:
            part = x if stride[1] == 1 else g.slice(x, [3], [phase], [width * stride[1]], [stride[1]])
            beside = [g.slice(part, [0], [k * deep], [(k + 1) * deep]) for k in range(many)] if many > 1 else [part]
            part = cat(g, Shaped((deep, i, high, many * width)), beside, 3)
            part = g.permute(g.reshape(part, (deep, i, high * each, block)), [0, 2, 1, 3])
            phases[phase] = g.reshape(part, (1, deep * block, high * each, i))
    d = g.permute(g.reshape(to_blocks(g, dy), (n, o // block, rows, columns * block)), [1, 0, 2, 3])
    d = g.reshape(d, (o // block * n, rows, columns * block))
    how = {
        "strides": [dilation[0] * each, 1],
        "pads": [padding[0] * each, 0, bottom * each, 0],
        "dilations": [stride[0], 1],
    }
    parts = []
    for moved, phase in moves:
        part = shifted(g, d, moved * block, width * block)
        if many > 1:
            part = g.permute(g.reshape(part, (o // block, many, deep * rows, width * block)), [0, 2, 1, 3])
        weight = g.reshape(part, (o, deep * block, rows * each, 1))
        parts.append(product(g, Shaped((1, o, kernel[0], i)), phases[phase], weight, **how))
    together = cat(g, Shaped((kernel[1], o, kernel[0], i)), parts)
    # [column, out/B, row, in, B] to [out/B, B, in, row, column], step by step as well.
    steps = g.permute(g.reshape(together, (kernel[1] * o // block, kernel[0] * i, block)), [0, 2, 1])
    steps = g.permute(g.reshape(steps, (kernel[1] * o, kernel[0], i)), [0, 2, 1])
    return g.reshape(g.permute(g.reshape(steps, (kernel[1], o * i * kernel[0])), [1, 0]), out.shape)


def shifted(g: Graph, x: Ref, by: int, width: int) -> Ref:
    """Along the last axis: element j of the result is element j - `by`, or 0 where there is none."""
    after = width - by - x.shape[2]
    if by == after == 0:
        return x
    return g.op("Pad", x, g.integers(0, 0, by, 0, 0, after), shape=(*x.shape[:2], width), mode="constant")
