"""Backward operators, and others that ONNX lacks or does slowly, in terms of simple PyTorch operators.

Each function has the signature of the operator that it stands for and gives the same numbers up to rounding; where
PyTorch breaks ties, so does it.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

__all__ = ["OWN", "aten", "constant", "instead_of", "separable", "table", "tree_cat"]

aten = torch.ops.aten
OWN: dict[Any, Callable[..., Any]] = {}

KEPT = [
    aten._softmax.default, aten._log_softmax.default, aten.gelu.default, aten.addmm.default, aten.elu.default,
    aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default,
    aten.hardswish.default, aten.hardsigmoid.default, aten.leaky_relu.default,
    aten.split.Tensor, aten.split_with_sizes.default, aten.mish.default, aten.stack.default,
]  # fmt: skip
"""Operators that ONNX has itself."""


def instead_of(*operators: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as what an operator is made of."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OWN.update(dict.fromkeys(operators, function))
        return function

    return register


@cache
def table() -> dict[Any, Callable[..., Any]]:
    """All decompositions: PyTorch's to its core operators, ours before them."""
    from trainpool.lowering.decompositions import elementwise, losses, normalisation, pooling, resizing

    assert {elementwise, losses, normalisation, pooling, resizing}  # each registers its own
    found = {key: value for key, value in core_aten_decompositions().items() if key not in KEPT}
    return {**found, **OWN}


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a function that makes a constant: only its result is recorded, not how it was made."""

    @wraps(make)
    def quietly(*args: Any) -> Tensor:
        with disable_proxy_modes_tracing(), unset_fake_temporarily():
            return make(*args).contiguous().clone()

    return quietly


def tree_cat(parts: list[Tensor], axis: int) -> Tensor:
    """Concatenate few at a time: graphics processors bind but eight arrays."""
    while len(parts) > 1:
        parts = [torch.cat(parts[k : k + 7], axis) if k + 1 < len(parts) else parts[k] for k in range(0, len(parts), 7)]
    return parts[0]


def separable(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """A linear map along each of the last axes: matrices `[out, in]`."""
    for axis, matrix in enumerate(reversed(matrices)):
        matrix = matrix.to(x.dtype)
        if axis == 0:
            x = torch.matmul(x, matrix.t())
        elif axis == 1:
            x = torch.matmul(matrix, x)
        else:
            x = torch.matmul(x.transpose(-1, -1 - axis), matrix.t()).transpose(-1, -1 - axis).contiguous()
    return x
