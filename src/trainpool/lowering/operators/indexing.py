"""Indexing by integers."""

from collections.abc import Sequence
from typing import Any

import torch

from trainpool.lowering.graph import Graph, Ref
from trainpool.lowering.operators.base import UnsupportedError, number, writes
from trainpool.lowering.operators.shapes import joined

__all__: list[str] = []


def positions(g: Graph, index: Ref, size: int) -> Ref:
    """Indices from 0 on: negative ones count from the end."""
    if index.constant is not None:
        return g.constant(torch.where(index.constant < 0, index.constant + size, index.constant))
    return index


@writes("index_select")
def index_select(g: Graph, out: Any, x: Ref, axis: int, index: Ref) -> Ref:
    return g.op("Gather", x, positions(g, index, x.shape[axis]), shape=out.shape, axis=axis)


@writes("embedding")
def embedding(g: Graph, out: Any, weight: Ref, indices: Ref, *rest: Any) -> Ref:
    return g.op("Gather", weight, indices, shape=out.shape, axis=0)


@writes("index")
def index(g: Graph, out: Any, x: Ref, indices: Sequence[Ref | None]) -> Ref:
    used = [axis for axis, i in enumerate(indices) if i is not None]
    if any(indices[a].dtype == torch.bool for a in used):  # type: ignore[union-attr]
        raise UnsupportedError("a boolean index gives a shape that depends on values: multiply by the mask instead")
    if len(used) == 1:
        axis = used[0]
        return g.op("Gather", x, positions(g, indices[axis], x.shape[axis]), shape=out.shape, axis=axis)  # type: ignore[arg-type]
    rest = [a for a in range(len(x.shape)) if a not in used]
    table = places_of(g, x, indices, used)
    found = g.op(
        "GatherND", g.permute(x, [*used, *rest]), table, shape=(*table.shape[:-1], *(x.shape[a] for a in rest))
    )
    return g.permute(found, back(used, len(table.shape) - 1, len(rest)))


def places_of(g: Graph, x: Ref, indices: Sequence[Ref | None], used: list[int]) -> Ref:
    """The index tensors side by side: `[..., len(used)]`."""
    refs = [positions(g, index, x.shape[a]) for a in used if (index := indices[a]) is not None]
    shape = torch.broadcast_shapes(*(r.shape for r in refs))
    return joined(g, [g.reshape(g.expand(r, shape), (*shape, 1)) for r in refs], len(shape))


def back(used: list[int], places: int, rest: int) -> list[int]:
    """From the index's axes first to where PyTorch puts them: at the indexed axes, if those are neighbours."""
    start = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    others = list(range(places, places + rest))
    return [*others[:start], *range(places), *others[start:]]


@writes("gather")
def gather(g: Graph, out: Any, x: Ref, axis: int, places: Ref, **other: Any) -> Ref:
    return g.op("GatherElements", x, places, shape=out.shape, axis=axis)


@writes("scatter_add")
def scatter_add(g: Graph, out: Any, x: Ref, axis: int, places: Ref, source: Ref) -> Ref:
    if source.shape != places.shape:
        source = g.slice(source, list(range(len(source.shape))), [0] * len(source.shape), places.shape)
    return g.op("ScatterElements", x, places, source, shape=out.shape, axis=axis, reduction="add")


@writes("scatter.src", "scatter.value")
def scatter(g: Graph, out: Any, x: Ref, axis: int, places: Ref, source: Any) -> Ref:
    values = source if isinstance(source, Ref) else g.expand(number(g, source, x.dtype), places.shape)
    return g.op("ScatterElements", x, places, values, shape=out.shape, axis=axis)


@writes("index_put")
def index_put(g: Graph, out: Any, x: Ref, indices: Sequence[Ref | None], values: Ref, accumulate: bool = False) -> Ref:
    used = [axis for axis, i in enumerate(indices) if i is not None]
    if any(indices[a].dtype == torch.bool for a in used):  # type: ignore[union-attr]
        raise UnsupportedError("assignment to places that a mask gives: use torch.where")
    rest = [a for a in range(len(x.shape)) if a not in used]
    table = places_of(g, x, indices, used)
    order = back(used, len(table.shape) - 1, len(rest))
    shape = [*table.shape[:-1], *(x.shape[a] for a in rest)]
    given = g.expand(g.cast(values, x.dtype), [shape[a] for a in order])
    given = g.permute(given, sorted(range(len(order)), key=order.__getitem__))
    moved = g.permute(x if x.constant is None else g.constant(x.constant), [*used, *rest])
    how: dict[str, Any] = {"reduction": "add"} if accumulate else {}
    changed = g.op("ScatterND", moved, table, given, shape=moved.shape, **how)
    return g.permute(changed, sorted(range(len(x.shape)), key=[*used, *rest].__getitem__))
