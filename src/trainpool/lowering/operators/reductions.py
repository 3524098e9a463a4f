"""Reductions, and sorting."""

import math
from typing import Any

import torch

from trainpool.lowering.graph import Graph, Ref
from trainpool.lowering.operators.base import TABLE, writes

__all__: list[str] = []


def reduce(g: Graph, out: Any, kind: str, x: Ref, axes: Any = None, keep: bool = False, given: Any = None) -> Ref:
    """A reduction along some axes, or all."""
    x = g.cast(x, given or out.dtype)
    if not x.shape:
        return x
    found = [axes] if isinstance(axes, int) else list(axes or range(len(x.shape)))
    places = sorted(a % len(x.shape) for a in found)
    if all(x.shape[a] == 1 for a in places):
        return g.reshape(g.cast(x, out.dtype), out.shape)
    return g.cast(g.op(kind, x, g.integers(*places), shape=out.shape, keepdims=int(keep)), out.dtype)


@writes("sum")
def total(g: Graph, out: Any, x: Ref, axes: Any = None, keep: bool = False, *, dtype: Any = None) -> Ref:
    kind, inputs = g.made.get(x.name, ("", ()))
    if kind == "Mul" and inputs[0] is inputs[1] and x.dtype == out.dtype and inputs[0].shape == x.shape:
        return reduce(g, out, "ReduceSumSquare", inputs[0], axes, keep)
    return reduce(g, out, "ReduceSum", x, axes, keep)


TABLE["mean"] = lambda g, out, x, axes=None, keep=False, *, dtype=None: reduce(g, out, "ReduceMean", x, axes, keep)
TABLE["amax"] = lambda g, out, x, axes=None, keep=False: reduce(g, out, "ReduceMax", x, axes, keep)
TABLE["amin"] = lambda g, out, x, axes=None, keep=False: reduce(g, out, "ReduceMin", x, axes, keep)
TABLE["prod"] = lambda g, out, x, axes=None, keep=False, *, dtype=None: reduce(g, out, "ReduceProd", x, axes, keep)
TABLE["any"] = lambda g, out, x, axes=None, keep=False: reduce(g, out, "ReduceMax", x, axes, keep, torch.int32)
TABLE["all"] = lambda g, out, x, axes=None, keep=False: reduce(g, out, "ReduceMin", x, axes, keep, torch.int32)


@writes("argmax", "argmin")
def argmax(g: Graph, out: Any, x: Ref, axis: Any = None, keep: bool = False, kind: str = "ArgMax") -> Ref:
    if axis is None:
        x, axis = g.reshape(x, [math.prod(x.shape)]), 0
    return g.reshape(g.op(kind, x, shape=out.shape, dtype=torch.int64, axis=axis, keepdims=int(keep)), out.shape)


TABLE["argmin"] = lambda g, out, x, axis=None, keep=False: argmax(g, out, x, axis, keep, "ArgMin")


@writes("max.dim", "min.dim")
def max_along(g: Graph, out: Any, x: Ref, axis: int, keep: bool = False, kind: str = "Max") -> tuple[Ref, Ref]:
    values, places = out
    return (
        reduce(g, values, f"Reduce{kind}", x, axis, keep),
        g.op(f"Arg{kind}", x, shape=places.shape, dtype=torch.int64, axis=axis, keepdims=int(keep)),
    )


TABLE["min.dim"] = lambda g, out, x, axis, keep=False: max_along(g, out, x, axis, keep, "Min")


@writes("cumsum")
def cumsum(g: Graph, out: Any, x: Ref, axis: int, *, dtype: Any = None) -> Ref:
    return g.op("CumSum", g.cast(x, out.dtype), g.constant(torch.tensor(axis)), shape=out.shape)


@writes("topk")
def topk(g: Graph, out: Any, x: Ref, k: int, axis: int = -1, largest: bool = True, ordered: bool = True) -> Any:
    results = [(o.shape, o.dtype) for o in out]
    return g.several("TopK", [x, g.integers(k)], results, axis=axis, largest=int(largest), sorted=int(ordered))


@writes("sort")
def sort(g: Graph, out: Any, x: Ref, axis: int = -1, descending: bool = False) -> Any:
    return topk(g, out, x, x.shape[axis], axis, descending)
