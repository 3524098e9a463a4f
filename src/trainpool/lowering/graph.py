"""Writing an ONNX graph: operators with known shapes and types, each written once, constants shared."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

__all__ = ["BLOCKS", "KINDS", "NO_INDICES", "Graph", "Ref"]

OPSET = 20
IR_VERSION = 9
BLOCKS = "com.microsoft.nchwc"
"""The domain of ONNX Runtime's operators on values in its blocked memory order."""
STEEP = 1e30
"""The slope of what is 0 for negative numbers and 1 for positive ones that are more than rounding."""
NO_INDICES = "no indices"
"""The name of a value that is not there: the places that max-pooling chose, which its gradient does without."""
KINDS = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


@dataclass(frozen=True, eq=False)
class Ref:
    """A value of the graph; `constant` where it is known."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    constant: torch.Tensor | None = None

    @property
    def uniform(self) -> float | int | bool | None:
        """The number that all elements of a constant are, if they are."""
        c = self.constant
        if c is None or c.numel() == 0:
            return None
        first = c.reshape(-1)[0]
        return first.item() if bool((c == first).all()) else None


class Graph:
    """A graph that grows. The same operator of the same inputs is written once."""

    def __init__(self, block: int = 0) -> None:
        """`block` channels at a time where convolutions can be written so; 0 for the standard's operators alone."""
        self.block = block
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[Ref] = []
        self.outputs: list[Ref] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.known: dict[Any, tuple[Ref, ...]] = {}
        self.cuts: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {}
        """By name of a part: its axes, starts, ends and steps."""
        self.made: dict[str, tuple[str, tuple[Ref, ...]]] = {}
        """By name of a result: its operator and inputs."""

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Ref:
        """A new input."""
        ref = Ref(name, tuple(shape), dtype)
        self.inputs.append(ref)
        return ref

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> Ref:
        """A constant; equal ones are one."""
        tensor = torch.as_tensor(value, dtype=dtype).detach().contiguous()
        array = tensor.numpy()
        digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode() + array.tobytes()).hexdigest()[:16]
        self.constants.setdefault(f"c.{digest}", array)
        return Ref(f"c.{digest}", tuple(tensor.shape), tensor.dtype, tensor)

    def integers(self, *values: int) -> Ref:
        """A constant list of integers."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def op(
        self,
        kind: str,
        *inputs: Ref | None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        **attributes: Any,
    ) -> Ref:
        """One operator with one result; by default of the inputs' common shape and the first one's type."""
        first = next(i for i in inputs if i is not None)
        if shape is None:
            shape = torch.broadcast_shapes(*(i.shape for i in inputs if i is not None))
        return self.several(kind, inputs, [(tuple(shape), dtype or first.dtype)], **attributes)[0]

    def several(
        self,
        kind: str,
        inputs: Sequence[Ref | None],
        results: Sequence[tuple[Sequence[int], torch.dtype]],
        **attributes: Any,
    ) -> tuple[Ref, ...]:
        """One operator with results of the given shapes and types."""
        names = tuple(i.name if i is not None else "" for i in inputs)
        key = (kind, names, len(results), repr(sorted(attributes.items())))
        if key not in self.known:
            number = len(self.nodes)
            outputs = [f"v{number}" if k == 0 else f"v{number}.{k}" for k in range(len(results))]
            refs = tuple(Ref(n, tuple(s), d) for n, (s, d) in zip(outputs, results, strict=True))
            while names and not names[-1]:
                names = names[:-1]
            self.nodes.append(helper.make_node(kind, names, outputs, name=f"n{number}", **attributes))
            self.known[key] = refs
            for ref in refs:
                self.made[ref.name] = (kind, tuple(i for i in inputs if i is not None))
        return self.known[key]

    def reshape(self, x: Ref, shape: Sequence[int]) -> Ref:
        """The same elements in another shape; a reshape of a reshape is one."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if x.constant is not None:
            return self.constant(x.constant.reshape(shape))
        if x.name in self.made and self.made[x.name][0] == "Reshape":
            return self.reshape(self.made[x.name][1][0], shape)
        return self.op("Reshape", x, self.integers(*shape), shape=shape)

    def permute(self, x: Ref, order: Sequence[int]) -> Ref:
        """The axes in another order; a reshape where only axes of length 1 move."""
        order = [axis % len(x.shape) for axis in order]
        shape = [x.shape[axis] for axis in order]
        if [axis for axis in order if x.shape[axis] > 1] == [a for a in range(len(order)) if x.shape[a] > 1]:
            return self.reshape(x, shape)
        if x.constant is not None:
            return self.constant(x.constant.permute(order))
        return self.op("Transpose", x, shape=shape, perm=list(order))

    def cast(self, x: Ref, dtype: torch.dtype) -> Ref:
        """Another type."""
        if x.dtype == dtype:
            return x
        if x.constant is not None:
            return self.constant(x.constant.to(dtype))
        kind, inputs = self.made.get(x.name, ("", ()))
        if self.block and kind == "Greater" and inputs[1].uniform == 0 and dtype == inputs[0].dtype == torch.float32:
            return self.op("HardSigmoid", inputs[0], alpha=STEEP, beta=0.0)  # one pass instead of two
        return self.op("Cast", x, dtype=dtype, to=KINDS[dtype])

    def expand(self, x: Ref, shape: Sequence[int]) -> Ref:
        """Repeated to a shape, if it does not have it."""
        return x if x.shape == tuple(shape) else self.op("Expand", x, self.integers(*shape), shape=shape)

    def slice(self, x: Ref, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Any = None) -> Ref:
        """A part along some axes."""
        steps = list(steps or [1] * len(axes))
        kind, inputs = self.made.get(x.name, ("", ()))
        if kind == "Slice" and not set(axes) & set(self.cuts[x.name][0]):  # parts of parts along other axes are one
            before = self.cuts[x.name]
            return self.slice(inputs[0], *([*a, *b] for a, b in zip(before, (axes, starts, ends, steps), strict=True)))
        shape = list(x.shape)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            shape[axis] = max(0, math.ceil((end - start) / step))
        lists = [self.integers(*v) for v in (starts, ends, axes)]
        part = self.op("Slice", x, *lists, *([] if set(steps) == {1} else [self.integers(*steps)]), shape=shape)
        self.cuts[part.name] = (list(axes), list(starts), list(ends), steps)
        return part

    @property
    def blocked(self) -> bool:
        """Whether any operator is of the blocked memory order."""
        return any(node.domain == BLOCKS for node in self.nodes)

    def model(self, name: str) -> onnx.ModelProto:
        """The finished file: what no output needs is left out."""
        needed = {ref.name for ref in self.outputs}
        nodes = []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
                while node.op_type not in ("TopK", "Split") and len(node.output) > 1 and node.output[-1] not in needed:
                    node.output.pop()
        constants = [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in needed]
        # Random numbers that nothing uses are drawn all the same: a program takes all that its manifest names.
        taken = [r for r in self.inputs if r.name in needed or r.name.startswith("noise.")]
        info = [helper.make_tensor_value_info(r.name, KINDS[r.dtype], r.shape) for r in taken]
        result = [helper.make_tensor_value_info(r.name, KINDS[r.dtype], r.shape) for r in self.outputs]
        graph = helper.make_graph(nodes[::-1], name, info, result, constants)
        domains = [helper.make_opsetid("", OPSET)]
        if self.blocked:
            domains.append(helper.make_opsetid(BLOCKS, 1))
        return helper.make_model(
            graph,
            opset_imports=domains,
            ir_version=IR_VERSION,
            producer_name="trainpool",
        )
