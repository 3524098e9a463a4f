"""What the exact tests share: models in float64, the system as a function, and the loops that it must equal."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trainpool import rng
from trainpool.coordinator import Coordinator
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.protocol import Arrival
from trainpool.strategies import AnyStrategy, Plan
from trainpool.testing import Fault, InProcessPool, simulate

EXACT = 1e-12
"""Largest difference, in float64, between two ways to compute the same thing."""

torch.set_num_threads(1)  # models this small only lose time on more

Vector = np.ndarray[Any, Any]
Data = dict[str, dict[str, Vector]]


def conv() -> nn.Module:
    """A convolutional network with GroupNorm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()


def batch_norm() -> nn.Module:
    """The same with BatchNorm, whose statistics are those of the last batch."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=1.0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()


def mlp() -> nn.Module:
    """A network with one hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def shards(*sizes: int, seed: int = 0) -> Data:
    """Random images `[n, 1, 6, 6]` with labels, whose brightness differs from shard to shard."""
    generator = np.random.default_rng(seed)
    data: Data = {}
    for number, size in enumerate(sizes):
        x = generator.normal(0.5 * number, 1.0, (size, 1, 6, 6))
        y = (x.reshape(size, -1)[:, :3] + generator.normal(0, 0.5, (size, 3))).argmax(1)
        data[hashlib.sha256(bytes([seed, number])).hexdigest()] = {"x": x, "y": y}
    return data


def together(data: Data) -> tuple[Vector, Vector]:
    """All samples."""
    return np.concatenate([part["x"] for part in data.values()]), np.concatenate([part["y"] for part in data.values()])


def run(
    model: nn.Module,
    data: Data,
    strategy: AnyStrategy,
    recipe: Recipe,
    steps: int | Sequence[int],
    *,
    speeds: Sequence[float] | None = None,
    pace: Pace | None = None,
    fault: Callable[[int], Fault | None] | None = None,
    watch: Callable[[Coordinator, Arrival], None] | None = None,
) -> Coordinator:
    """The system: `steps` of each shard in the whole run, a worker a shard."""
    coordinator = system(model, data, strategy, recipe, steps, pace=pace)
    kernel = TorchKernel(model, functional.cross_entropy)
    pool = InProcessPool(kernel, data.__getitem__, speeds=list(speeds or [1.0] * len(data)), fault=fault)
    seen = None if watch is None else lambda arrival, _: watch(coordinator, arrival)
    assert simulate(coordinator, pool, seen=seen) == "finished"
    return coordinator


def system(
    model: nn.Module,
    data: Data,
    strategy: AnyStrategy,
    recipe: Recipe,
    steps: int | Sequence[int],
    *,
    pace: Pace | None = None,
) -> Coordinator:
    """The coordinator of such a run, at its start."""
    plan = plan_of(data, recipe, steps)
    kernel = TorchKernel(model, functional.cross_entropy)
    return Coordinator(strategy, plan, kernel.layout, vector_of(model), pace=pace)


def plan_of(data: Data, recipe: Recipe, steps: int | Sequence[int]) -> Plan:
    """A plan with those steps of each shard."""
    counts = [steps] * len(data) if isinstance(steps, int) else steps
    parts = Plan.of({shard: len(part["y"]) for shard, part in data.items()}, recipe, 1).shards
    return Plan(tuple(dataclasses.replace(p, steps=n) for p, n in zip(parts, counts, strict=True)), recipe)


def batches(coordinator: Coordinator, data: Data, number: int, batch: int = 0) -> Iterator[tuple[Vector, Vector]]:
    """The batches of a shard, one a step, as the coordinator's tasks would name them."""
    shard = list(data)[number]
    x, y = data[shard]["x"], data[shard]["y"]
    for rows in rng.batches(coordinator.units.units[shard].seed, len(y), 0, 10_000, batch or len(y)):
        yield x[rows], y[rows]


def gradient(model: nn.Module, x: Vector, y: Vector) -> Vector:
    """Of the mean loss, flat."""
    model.zero_grad()
    functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None])


def put(model: nn.Module, w: Vector) -> nn.Module:
    """The model with other parameters."""
    nn.utils.vector_to_parameters(torch.from_numpy(w.copy()), model.parameters())
    return model


def start(model: nn.Module) -> Vector:
    """The parameters, flat."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def descend(model: nn.Module, stream: Iterator[tuple[Vector, Vector]], steps: int, optimizer: Any) -> Vector:
    """A plain PyTorch training loop: `optimizer` makes one from parameters."""
    chosen = optimizer(model.parameters())
    for _, (x, y) in zip(range(steps), stream, strict=False):
        chosen.zero_grad()
        functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        chosen.step()
    return start(model)


def sgd(rate: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    """PyTorch's SGD."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **options)


def merged(streams: Sequence[Iterator[tuple[Vector, Vector]]]) -> Iterator[tuple[Vector, Vector]]:
    """One large batch a step out of several streams."""
    for parts in zip(*streams, strict=True):
        yield np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def difference(a: Vector, b: Vector) -> float:
    """The largest of any element."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.float64
    return float(np.abs(a - b).max())
