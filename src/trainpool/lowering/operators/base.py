"""What the writers of operators share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainpool.lowering.graph import Graph, Ref

__all__ = ["TABLE", "Shaped", "UnsupportedError", "common", "elementwise", "number", "unexpanded", "writes"]

TABLE: dict[str, Callable[..., Any]] = {}
"""By the operator's name, with its overload where that matters."""


class UnsupportedError(Exception):
    """A form of an operator that ONNX cannot say, in words."""


class Shaped:
    """A result's shape and type."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype = tuple(shape), dtype


def writes(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function (graph, result's shape and type, *arguments) as how these operators are written."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return register


def number(g: Graph, value: Any, dtype: torch.dtype) -> Ref:
    """An operand of a type, from a value of the graph or a number."""
    if not isinstance(value, Ref):
        return g.constant(torch.tensor(value).to(dtype))
    uniform = value.uniform if value.constant is not None and len(value.shape) > 0 else None
    if uniform is not None and value.constant is not None and value.constant.numel() > 1:
        return g.constant(torch.tensor(uniform).to(dtype))
    return g.cast(unexpanded(g, value), dtype)


def unexpanded(g: Graph, x: Ref) -> Ref:
    """What was expanded to `x`: operators on elements expand by themselves."""
    kind, inputs = g.made.get(x.name, ("", ()))
    return inputs[0] if kind == "Expand" else x


def elementwise(g: Graph, out: Any, kind: str, *operands: Any, dtype: Any = None, given: Any = None) -> Ref:
    """An operator on elements, expanded where no operand has the whole shape."""
    given = given or out.dtype
    refs = [number(g, value, given) for value in operands]
    x = g.op(kind, *refs, dtype=dtype or given)
    return g.expand(g.cast(x, out.dtype), out.shape)


def common(*operands: Any) -> torch.dtype:
    """The type that operands of several types are computed in."""
    kinds = [torch.empty(v.shape, dtype=v.dtype) if isinstance(v, Ref) else v for v in operands]
    return torch.result_type(kinds[0], kinds[1])
