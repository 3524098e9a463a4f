"""A program against PyTorch, on real batches."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.protocol import Kernel
from trainpool.kernels.torch import TorchKernel, scale
from trainpool.messages import Recipe, Task
from trainpool.program import Loaded
from trainpool.vector import Vector

if TYPE_CHECKING:
    from trainpool.experiment import Experiment

__all__ = ["Comparison", "compare", "relative"]

THREADS = 1
TOLERANCE = 1e-3
"""Largest difference of a few steps' update, relative to the update. Rounding stays far below; but where it decides on
which side of a ReLU a number is, or which of two is the maximum, any two kernels may differ by more."""
ATTEMPTS = 5
"""Tasks, in other orders of the samples, one of which must agree: rounding decides now and then, a mistake always."""


@dataclass(frozen=True)
class Comparison:
    """How far a program is from PyTorch, and how fast."""

    steps: int
    update: float
    """‖Δ - Δ'‖/‖Δ‖ of the parameters' change."""
    exact: float | None
    """The same, of the program from PyTorch in float64; None where the author's code runs in float32 alone."""
    torch_exact: float | None
    """The same, of PyTorch in float32 from PyTorch in float64: what rounding alone does."""
    buffers: float
    """The same of BatchNorm's statistics and other buffers."""
    evaluation: float
    """The relative difference of the evaluation's loss."""
    seconds: float
    """Of a training step of the program, on one thread."""
    torch_seconds: float
    """Of PyTorch's."""

    @property
    def limit(self) -> float:
        """How far apart rounding may bring the two, which some steps of some networks multiply."""
        return max(TOLERANCE, 3 * (self.torch_exact or 0.0))

    @property
    def apart(self) -> float:
        """How far the program is from the best answer that there is."""
        return self.update if self.exact is None else self.exact

    @property
    def agrees(self) -> bool:
        """Whether the program computes what PyTorch does."""
        return self.apart <= self.limit and self.buffers <= self.limit and self.evaluation <= TOLERANCE


def relative(found: Vector, wanted: Vector) -> float:
    """‖found - wanted‖/‖wanted‖; 0 where both are nothing. What is infinite, as in a mask, is equal or far apart."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    apart = np.subtract(found, wanted, out=np.zeros_like(wanted), where=found != wanted)
    size = float(np.linalg.norm(wanted[np.isfinite(wanted)]))
    difference = float(np.linalg.norm(apart))
    return difference / size if size else difference


def compare(
    loaded: Loaded,
    experiment: "Experiment",
    vector: Vector,
    recipe: Recipe,
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    steps: int,
    proximal: bool,
    each: bool,
) -> Comparison:
    """Run the same task on both kernels, with a proximal term where there is one; then the same evaluation.

    Without `each`, the loss is no mean over samples, and only whole batches can be compared.
    """
    task = Task(
        id=0, version=0, shard="0", recipe=recipe, seed=1, offset=0, steps=steps, batch=loaded.program.batch,
        progress=0.5, anchored=proximal, rho=0.01 if proximal else 0.0,
    )  # fmt: skip
    anchor = vector[: loaded.layout.trainable] * np.float32(0.9)
    own = TorchKernel(
        copy.deepcopy(experiment.model),
        experiment.loss_function(),
        experiment.preprocess,
        augment=experiment.augment,
    )
    # The form that suits this processor, then the one that suits all: the worse of them counts.
    forms: list[Kernel] = [OnnxKernel(loaded, threads=THREADS, plain=True)]
    if loaded.blocked:
        forms.insert(0, OnnxKernel(loaded, threads=THREADS))
    shard = {"x": x, "y": y}
    size = loaded.program.evaluation_batch
    rows = np.arange(size + 1 if each else 2 * size) % len(y)
    test = {"x": x[rows], "y": y[rows]}
    cut = loaded.layout.trainable

    def measure(task: Task) -> Comparison:
        exact = in_float64(experiment, task, vector, anchor, shard)
        deltas, seconds, losses = [], [], []
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            for kernel in (*forms, own):
                out = np.empty_like(vector)
                kernel.run(task, vector, anchor, shard, out)  # the first one warms up
                report = kernel.run(task, vector, anchor, shard, out)
                deltas.append(out)
                seconds.append(report.seconds / steps)
                losses.append(kernel.evaluate(vector, test).loss)
        finally:
            torch.set_num_threads(threads)
        *found, wanted = deltas
        return Comparison(
            steps,
            max(relative(delta[:cut], wanted[:cut]) for delta in found),
            None if exact is None else max(relative(delta[:cut], exact[:cut]) for delta in found),
            None if exact is None else relative(wanted[:cut], exact[:cut]),
            max(relative(delta[cut:], wanted[cut:]) for delta in found),
            abs(losses[0] - losses[-1]) / max(abs(losses[-1]), 1e-30),
            seconds[0],
            seconds[-1],
        )

    found = measure(task)
    for seed in range(2, ATTEMPTS + 1):
        if found.agrees:
            break
        found = measure(msgspec.structs.replace(task, seed=seed))
    return found


def in_float64(
    experiment: "Experiment", task: Task, vector: Vector, anchor: Vector, shard: dict[str, np.ndarray[Any, Any]]
) -> Vector | None:
    """The task's answer without rounding that matters; None where the author's code runs in float32 alone."""

    def double(x: Tensor) -> Any:
        prepared = (experiment.preprocess or scale)(x)
        return prepared.double() if isinstance(prepared, Tensor) and prepared.is_floating_point() else prepared

    def loss(output: Any, target: Tensor) -> Tensor:
        return criterion(output, target.double() if target.is_floating_point() else target)

    criterion = experiment.loss_function()
    if isinstance(criterion, nn.Module):
        criterion = copy.deepcopy(criterion).double()
    model = copy.deepcopy(experiment.model).double()
    out = np.empty(vector.size)
    kernel = TorchKernel(model, loss, double, augment=experiment.augment)
    try:
        kernel.run(task, vector.astype(np.float64), anchor.astype(np.float64), shard, out)
    except Exception:  # a cast to float32 in the model, a loss's own float32 tensors: whatever the author wrote
        return None
    return out
