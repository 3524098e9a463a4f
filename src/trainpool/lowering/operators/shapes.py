"""Shapes, parts, padding, constants."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from trainpool.lowering.graph import Graph, Ref
from trainpool.lowering.operators.base import unexpanded, writes

__all__ = ["joined"]


@writes("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "clone", "alias", "detach", "lift_fresh_copy",
        "lift_fresh", "contiguous")  # fmt: skip
def view(g: Graph, out: Any, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return g.reshape(x, out.shape)


@writes("permute")
def permute(g: Graph, out: Any, x: Ref, order: Sequence[int]) -> Ref:
    return g.permute(x, order)


@writes("t", "transpose")
def transpose(g: Graph, out: Any, x: Ref, a: int = 0, b: int = 1) -> Ref:
    order = list(range(len(x.shape)))
    if len(order) > 1:
        order[a], order[b] = order[b], order[a]
    return g.permute(x, order)


@writes("expand")
def expand(g: Graph, out: Any, x: Ref, size: Any, **other: Any) -> Ref:
    x = unexpanded(g, x) if len(unexpanded(g, x).shape) == len(out.shape) else x
    return g.expand(g.reshape(x, [1] * (len(out.shape) - len(x.shape)) + list(x.shape)), out.shape)


@writes("copy")
def copy(g: Graph, out: Any, x: Ref, source: Ref, *rest: Any) -> Ref:
    return g.expand(g.cast(source, out.dtype), out.shape)


@writes("_to_copy", "convert_element_type", "to")
def to_copy(g: Graph, out: Any, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return g.cast(x, out.dtype)


def bounds(size: int, start: Any, end: Any) -> tuple[int, int]:
    """Python's slice bounds within a size."""
    a, b, _ = slice(start, end).indices(size)
    return a, b


@writes("slice")
def slice_(g: Graph, out: Any, x: Ref, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Ref:
    if x.shape == tuple(out.shape):
        return x
    a, b = bounds(x.shape[axis], start, end)
    return g.slice(x, [axis % len(x.shape)], [a], [b], [step])


@writes("select")
def select(g: Graph, out: Any, x: Ref, axis: int, index: int) -> Ref:
    axis, index = axis % len(x.shape), index % x.shape[axis]
    return g.reshape(g.slice(x, [axis], [index], [index + 1]), out.shape)


@writes("cat")
def cat(g: Graph, out: Any, parts: Sequence[Ref], axis: int = 0) -> Ref:
    axis %= len(out.shape)
    refs = [g.cast(p, out.dtype) for p in parts if p.shape != (0,)]
    while len(refs) > 1:  # few at a time: graphics processors bind but eight arrays
        groups = [refs[k : k + 7] for k in range(0, len(refs), 7)]
        refs = [joined(g, group, axis) for group in groups]
    return refs[0]


def joined(g: Graph, parts: Sequence[Ref], axis: int) -> Ref:
    """One concatenation."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] = sum(p.shape[axis] for p in parts)
    return g.op("Concat", *parts, shape=shape, axis=axis)


@writes("stack")
def stack(g: Graph, out: Any, parts: Sequence[Ref], axis: int = 0) -> Ref:
    axis %= len(out.shape)
    return cat(g, out, [g.reshape(p, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts], axis)


@writes("split_with_sizes", "split")
def split(g: Graph, out: Any, x: Ref, sizes: Any, axis: int = 0) -> tuple[Ref, ...]:
    axis %= len(x.shape)
    lengths = [o.shape[axis] for o in out]
    ends = [sum(lengths[: k + 1]) for k in range(len(lengths))]
    return tuple(g.slice(x, [axis], [e - n], [e]) for e, n in zip(ends, lengths, strict=True))


@writes("constant_pad_nd")
def pad(g: Graph, out: Any, x: Ref, pads: Sequence[int], value: float = 0) -> Ref:
    n = len(x.shape)
    before, after = [0] * n, [0] * n
    for axis, (a, b) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        before[n - 1 - axis], after[n - 1 - axis] = a, b
    cut = [a for a in range(n) if before[a] < 0 or after[a] < 0]
    if cut:
        starts = [max(0, -before[a]) for a in cut]
        ends = [x.shape[a] - max(0, -after[a]) for a in cut]
        x = g.slice(x, cut, starts, ends)
    widths = [max(0, v) for v in (*before, *after)]
    if not any(widths):
        return x
    fill = [] if value == 0 else [g.constant(torch.tensor(value, dtype=x.dtype))]
    return g.op("Pad", x, g.integers(*widths), *fill, shape=out.shape, mode="constant")


@writes("flip")
def flip(g: Graph, out: Any, x: Ref, axes: Sequence[int]) -> Ref:
    axes = sorted(a % len(x.shape) for a in axes if x.shape[a] > 1)
    if not axes:
        return x
    if axes == list(range(axes[0], axes[-1] + 1)):  # neighbours: one axis, turned round
        many = math.prod(x.shape[a] for a in axes)
        flat = g.reshape(x, (*x.shape[: axes[0]], many, *x.shape[axes[-1] + 1 :]))
        turned = g.op("Gather", flat, g.constant(torch.arange(many - 1, -1, -1)), shape=flat.shape, axis=axes[0])
        return g.reshape(turned, x.shape)
    for axis in axes:
        order = g.constant(torch.arange(x.shape[axis] - 1, -1, -1))
        x = g.op("Gather", x, order, shape=x.shape, axis=axis)
    return x


@writes("slice_scatter")
def slice_scatter(
    g: Graph, out: Any, x: Ref, source: Ref, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Ref:
    axis %= len(x.shape)
    size = x.shape[axis]
    a, b = bounds(size, start, end)
    if step == 1:
        if b <= a:
            return x
        before = [g.slice(x, [axis], [0], [a])] if a > 0 else []
        after = [g.slice(x, [axis], [b], [size])] if b < size else []
        return cat(g, out, [*before, g.expand(g.cast(source, x.dtype), source.shape), *after], axis)
    # every step-th place: spread the source with zeros on a new axis (six times as fast as padding single numbers),
    # then choose by a constant mask
    count, head, tail = len(range(a, b, step)), source.shape[:axis], source.shape[axis + 1 :]
    zeros = g.expand(g.constant(0, source.dtype), (*head, count, step - 1, *tail))
    spread = joined(g, [g.reshape(source, (*head, count, 1, *tail)), zeros], axis + 1)
    spread = g.reshape(spread, (*head, count * step, *tail))
    after_size = size - a - count * step
    if after_size < 0:
        spread = g.slice(spread, [axis], [0], [size - a])
    edges = [0] * (2 * len(x.shape))
    edges[axis], edges[len(x.shape) + axis] = a, max(0, after_size)
    if any(edges):
        spread = g.op("Pad", spread, g.integers(*edges), shape=x.shape, mode="constant")
    if x.uniform == 0:
        return spread
    mask = torch.zeros(size, dtype=x.dtype)
    mask[a:b:step] = 1
    rest = g.constant((1 - mask).reshape(-1, *[1] * (len(x.shape) - axis - 1)))
    return g.op("Add", g.op("Mul", x, rest), spread)


@writes("select_scatter")
def select_scatter(g: Graph, out: Any, x: Ref, source: Ref, axis: int, index: int) -> Ref:
    axis, index = axis % len(x.shape), index % x.shape[axis]
    part = g.reshape(source, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    if x.uniform == 0 and x.dtype == source.dtype:
        pads = [0] * (2 * len(x.shape))
        pads[axis], pads[len(x.shape) + axis] = index, x.shape[axis] - index - 1
        return g.op("Pad", part, g.integers(*pads), shape=x.shape, mode="constant")
    return slice_scatter(g, out, x, part, axis, index, index + 1)


@writes("repeat")
def repeat(g: Graph, out: Any, x: Ref, times: Sequence[int]) -> Ref:
    x = g.reshape(x, [1] * (len(times) - len(x.shape)) + list(x.shape))
    return g.op("Tile", x, g.integers(*times), shape=out.shape)


@writes("full_like", "new_full")
def full(g: Graph, out: Any, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return g.constant(torch.full(out.shape, args[-1], dtype=out.dtype))


for name_, fill_ in {"zeros_like": 0, "ones_like": 1, "empty_like": 0, "new_zeros": 0, "new_ones": 1, "new_empty": 0,
                     "empty_strided": 0, "new_empty_strided": 0}.items():  # fmt: skip
    writes(name_)(lambda g, out, *args, fill=fill_, **kwargs: g.constant(torch.full(out.shape, fill, dtype=out.dtype)))
