"""A lowered experiment against the PyTorch kernel, and both against float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import trainpool as tp
from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.lowering import Lowered, lower
from trainpool.lowering.check import in_float64, relative
from trainpool.messages import Recipe, Task

STEADY = Recipe(learning_rate=0.05, batch_size=6, schedule="constant")


@dataclass(frozen=True)
class Case:
    """A training of some steps that every kernel does alike."""

    make: Callable[[], nn.Module]
    x: np.ndarray
    y: np.ndarray
    loss: str | Callable[[Any, Tensor], Tensor] = "cross-entropy"
    recipe: Recipe = STEADY
    steps: int = 5
    rho: float = 0.0
    augment: Callable[[Tensor], Tensor] | None = None

    def model(self) -> nn.Module:
        """The same parameters each time."""
        torch.manual_seed(0)
        return self.make()

    def experiment(self) -> tp.Experiment:
        return tp.Experiment(self.model(), (self.x, self.y), loss=self.loss, augment=self.augment)

    def agrees(self, attempts: int = 1) -> Lowered:
        """See that ONNX Runtime trains as PyTorch does."""
        return agree(
            self.model(), self.x, self.y, loss=self.loss, recipe=self.recipe, steps=self.steps, rho=self.rho,
            augment=self.augment, attempts=attempts,
        )  # fmt: skip


def task_of(recipe: Recipe, steps: int, batch: int, rho: float = 0.0, seed: int = 5) -> Task:
    return Task(
        id=1, version=0, shard="s", recipe=recipe, seed=seed, offset=32, steps=steps, batch=batch, progress=0.1,
        pace=0.02, anchored=bool(rho), rho=rho,
    )  # fmt: skip


def updates(
    lowered: Lowered, experiment: tp.Experiment, recipe: Recipe, steps: int, rho: float = 0.0, seed: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The deltas and buffers of the same task: of the program, of PyTorch, of PyTorch in float64."""
    x, y = experiment.train
    task = task_of(recipe, steps, lowered.program.batch, rho, seed)

    kernels = (
        OnnxKernel(lowered.loaded),
        TorchKernel(
            copy.deepcopy(experiment.model),
            experiment.loss_function(),
            experiment.preprocess,
            augment=experiment.augment,
        ),
    )
    start = vector_of(experiment.model)
    anchor = start[: lowered.loaded.layout.trainable] * np.float32(0.9)
    found, losses = [], []
    for kernel in kernels:
        out = np.empty_like(start)
        losses.append(kernel.run(task, start, anchor, {"x": x, "y": y}, out).loss)
        found.append(out)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    exact = in_float64(experiment, task, start, anchor, {"x": x, "y": y})
    assert exact is not None
    return found[0], found[1], exact


def agree(
    model: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    *,
    loss: str | Callable[[Any, Tensor], Tensor] = "cross-entropy",
    recipe: Recipe | None = None,
    steps: int = 5,
    rho: float = 0.0,
    augment: Callable[[Tensor], Tensor] | None = None,
    preprocess: Callable[[Tensor], Any] | None = None,
    bound: float = 1e-4,
    attempts: int = 1,
) -> Lowered:
    """Lower, train some steps on each kernel, and see that the updates are one.

    Where float32 itself is further from float64 than the bound, the program may be twice as far as PyTorch is. Of
    several tasks, `attempts`, one must agree: in a deep network rounding decides now and then on which side of a ReLU a
    number is, a mistake always.
    """
    recipe = recipe or STEADY
    experiment = tp.Experiment(model, (x, y), loss=loss, augment=augment, preprocess=preprocess)
    lowered = lower(experiment, recipe, proximal=rho > 0, steps=1)
    assert lowered.comparison.evaluation < 1e-4
    cut = lowered.loaded.layout.trainable
    tried = []
    for seed in range(5, 5 + attempts):
        ours, torchs, exact = updates(lowered, experiment, recipe, steps, rho, seed)
        assert np.linalg.norm(exact[:cut]) > 1e-6, "nothing was trained"
        limit = max(bound, 2 * relative(torchs[:cut], exact[:cut]))
        buffers = max(bound, 2 * relative(torchs[cut:], exact[cut:]))
        differences = {
            "from float64": (relative(ours[:cut], exact[:cut]), limit),
            "from PyTorch": (relative(ours[:cut], torchs[:cut]), limit),
            "buffers": (relative(ours[cut:], exact[cut:]), buffers),
        }
        if all(found <= most for found, most in differences.values()):
            return lowered
        tried.append(differences)
    raise AssertionError(f"(difference, limit) of each task: {tried}")
