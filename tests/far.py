"""A device whose memory is not the processor's, for machines without a GPU; a program, since PyTorch can have but one.

Tensors on it hold a processor's tensor that only this file can reach. An operator that is given tensors of both kinds
fails, as on a GPU: nothing but a copy may go from one to the other.
"""

import copy
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from trainpool.augment import Noise, RandomCrop, RandomFlip
from trainpool.kernels.protocol import Calibration
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.messages import Recipe, Task

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Far(Tensor):
    """A tensor on the device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, held: Tensor) -> "Far":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="far:0"
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operator, args, kwargs or {})


class Device(TorchDispatchMode):
    """Brings tensors to the device: they are made on the processor."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operator, args, kwargs or {})


@torch.inference_mode(False)
@torch.no_grad()
def run(operator: Any, args: Any, kwargs: Any) -> Any:
    """An operator, on what its tensors hold."""
    tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if operator not in COPIES and len({isinstance(tensor, Far) for tensor in tensors if tensor.dim()}) > 1:
        raise RuntimeError(f"{operator} got tensors of two devices")
    device = kwargs.get("device")
    far = any(isinstance(tensor, Far) for tensor in tensors) if device is None else torch.device(device).type == "far"
    near_args, near_kwargs = _pytree.tree_map_only(Far, lambda tensor: tensor.held, (args, kwargs))
    if device is not None:
        near_kwargs = {**near_kwargs, "device": "cpu"}
    result = operator(*near_args, **near_kwargs)
    if operator is torch.ops.aten.copy_.default:
        return args[0]
    if not far:
        return result
    return return_and_correct_aliasing(operator, args, kwargs, _pytree.tree_map_only(Tensor, Far, result))


RECIPES = {
    "sgd": Recipe(momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=1.0),
    "adamw": Recipe(optimizer="adamw", learning_rate=0.001),
}


def train(recipe: Recipe, device: str) -> list[np.ndarray]:
    """All that a kernel returns."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(36, 10),
    )  # fmt: skip
    generator = np.random.default_rng(0)
    shard = {"x": generator.integers(0, 256, (90, 1, 8, 8), dtype=np.uint8), "y": generator.integers(0, 10, 90)}
    augment = nn.Sequential(RandomCrop(1), RandomFlip(), Noise(0.1))
    kernel = TorchKernel(copy.deepcopy(net), nn.functional.cross_entropy, None, device, augment=augment)
    vector = vector_of(net)
    out, anchor = np.empty_like(vector), vector[: kernel.layout.trainable] + np.float32(0.01)
    task = Task(
        id=0, version=0, shard="s", recipe=recipe, seed=1, offset=0, steps=5, batch=32, anchored=True, rho=0.1
    )  # fmt: skip
    report = kernel.run(task, vector, anchor, shard, out)
    found = kernel.evaluate(vector, shard)
    buffers = kernel.recalibrate(vector, lambda _: shard, Calibration(shards=("s",), batches=3, batch=32))
    return [out, np.array([report.loss, found.loss, found.accuracy]), buffers]


def main() -> None:
    """Print how far the device's results are from the processor's."""
    _setup_privateuseone_for_python_backend("far")
    apart = {}
    with Device():
        for name, recipe in RECIPES.items():
            pairs = zip(train(recipe, "cpu"), train(recipe, "far"), strict=True)
            apart[name] = max(float(np.abs(a - b).max()) for a, b in pairs)
        try:
            torch.ones(2, device="far") + torch.ones(2)
        except RuntimeError as error:
            apart["mixed"] = str(error)
    print(json.dumps(apart))


if __name__ == "__main__":
    main()
