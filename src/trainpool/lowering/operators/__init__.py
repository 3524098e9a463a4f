"""PyTorch's core operators in ONNX: one small function each."""

from trainpool.lowering.operators import elementwise, gradients, indexing, products, reductions, shapes
from trainpool.lowering.operators.base import TABLE, UnsupportedError

__all__ = ["TABLE", "UnsupportedError"]

assert {elementwise, gradients, indexing, products, reductions, shapes}  # each registers its own
