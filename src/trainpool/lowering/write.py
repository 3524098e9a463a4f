"""From a recorded graph of PyTorch operators to an ONNX graph."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from onnx import helper
from torch.fx import GraphModule, Node

from trainpool.errors import LoweringError
from trainpool.lowering.graph import NO_INDICES, Graph, Ref
from trainpool.lowering.operators import TABLE, UnsupportedError

__all__ = ["write"]


def write(
    recorded: GraphModule, inputs: Sequence[tuple[str, torch.Tensor]], outputs: Sequence[str], block: int = 0
) -> Graph:
    """The ONNX graph of a recorded one; `inputs` and `outputs` name its values in their order. `block` is of `Graph`.

    Raises:
        LoweringError: an operator has no ONNX form; it is named with its place in the author's code.
    """
    graph = Graph(block)
    values: dict[Node, Any] = {}
    names = iter(inputs)
    for node in recorded.graph.nodes:
        if node.op == "placeholder":
            name, tensor = next(names)
            values[node] = graph.input(name, tensor.shape, tensor.dtype)
        elif node.op == "get_attr":
            values[node] = graph.constant(getattr(recorded, str(node.target)))
        elif node.op == "call_function":
            values[node] = call(graph, node, values)
        else:
            finish(graph, torch.utils._pytree.tree_leaves(node.args[0]), values, outputs)
    return graph


def call(graph: Graph, node: Node, values: dict[Node, Any]) -> Any:
    """One operator."""
    if getattr(node.target, "__name__", "") == "getitem":
        return values[node.args[0]][node.args[1]]  # type: ignore[index]
    look = torch.fx.node.map_arg
    args, kwargs = look(node.args, lambda n: values[n]), look(node.kwargs, lambda n: values[n])
    refs = [r for r in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(r, Ref)]
    if all(r.constant is not None for r in refs):
        known = torch.utils._pytree.tree_map_only(Ref, lambda r: r.constant, (args, kwargs))
        result = node.target(*known[0], **known[1])  # type: ignore[operator]
        return torch.utils._pytree.tree_map_only(torch.Tensor, graph.constant, result)
    full = str(node.target).removeprefix("aten.")
    if any(r.name == NO_INDICES for r in refs):
        raise LoweringError(f"the indices of max-pooling (return_indices) have no ONNX form{place(node)}")
    writer = TABLE.get(full) or TABLE.get(full.partition(".")[0])
    if writer is None:
        raise LoweringError(f"the operator aten.{full} has no ONNX form{place(node)}; {instead(full)}")
    meta = node.meta["val"]
    kind = full.partition(".")[0]
    out = [describe(m, kind) for m in meta] if isinstance(meta, list | tuple) else describe(meta, kind)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("memory_format", "device", "layout", "pin_memory")}
    try:
        result = writer(graph, out, *args, **kwargs)
    except UnsupportedError as error:
        raise LoweringError(f"the operator aten.{full} cannot be lowered{place(node)}: {error}") from error
    except TypeError as error:
        raise LoweringError(f"this form of aten.{full} has no ONNX form{place(node)}: {error}") from error
    for ref, wanted in zip(
        result if isinstance(result, tuple) else [result], out if isinstance(out, list) else [out], strict=True
    ):
        if wanted is not None and ref is not None and (ref.shape, ref.dtype) != (tuple(wanted.shape), wanted.dtype):
            raise LoweringError(
                f"aten.{full} was written with shape {ref.shape} and type {ref.dtype}, but has "
                f"{tuple(wanted.shape)} and {wanted.dtype}{place(node)}"
            )
    return result


def describe(value: Any, kind: str) -> Any:
    """A result's shape and type, and the operator's name."""
    return None if value is None else SimpleNamespace(shape=tuple(value.shape), dtype=value.dtype, kind=kind)


def place(node: Node) -> str:
    """Where in the author's code an operator comes from."""
    found = node.meta.get("stack_trace")
    return f" ({found})" if found else ""


INSTEAD = {
    "nonzero": "its result's shape depends on values: multiply by a mask instead",
    "masked_select": "its result's shape depends on values: multiply by the mask instead",
    "unique": "its result's shape depends on values",
    "_unique2": "its result's shape depends on values",
    "bernoulli": "call torch.bernoulli or nn.Dropout from Python, where its numbers can be replaced",
    "adaptive_max_pool2d": "choose output sizes that divide the input's",
    "adaptive_max_pool3d": "choose output sizes that divide the input's",
    "_fft_r2c": "ONNX has no complex numbers",
    "linalg_inv_ex": "ONNX has no linear algebra beyond products",
}


def instead(operator: str) -> str:
    """What to do about an operator."""
    return INSTEAD.get(operator.partition(".")[0], "write that part with other operators (docs/lowering.md)")


def finish(graph: Graph, leaves: Sequence[Any], values: dict[Node, Any], names: Sequence[str]) -> None:
    """Name the outputs."""
    for leaf, name in zip(leaves, names, strict=True):
        ref = values[leaf]
        graph.nodes.append(helper.make_node("Identity", [ref.name], [name], name=f"out.{name}"))
        graph.outputs.append(Ref(name, ref.shape, ref.dtype))
