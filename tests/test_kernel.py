"""The PyTorch kernel against the loop that one writes by hand."""

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from trainpool import models, rng
from trainpool.kernels.protocol import KernelError
from trainpool.kernels.torch import TorchKernel, channels_last, layout_of, vector_of
from trainpool.messages import Recipe, Task

X = np.random.default_rng(0).integers(0, 256, (90, 3, 8, 8), dtype=np.uint8)
Y = np.random.default_rng(1).integers(0, 5, 90)
SHARD = {"x": X, "y": Y}


def network(double: bool = True) -> nn.Module:
    """Convolution, GroupNorm, a shared weight, a frozen parameter."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
    )
    net[5].bias.requires_grad_(False)
    return net.double() if double else net


def prepared(x: torch.Tensor) -> torch.Tensor:
    return x.double() / 255


def task(steps: int = 7, **changes: object) -> Task:
    recipe = Recipe(**{"batch_size": 16, "learning_rate": 0.05, "schedule": "constant", **changes})  # type: ignore[arg-type]
    return Task(id=1, version=0, shard="s", recipe=recipe, seed=5, offset=32, steps=steps, batch=16)


RECIPES = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "epsilon": 1e-6},
    {"clip_norm": 0.1},
]


def by_hand(net: nn.Module, what: Task, optimizer: torch.optim.Optimizer, anchor: np.ndarray | None = None) -> float:
    """The loop that everybody writes; returns the mean loss."""
    total = 0.0
    trained = [p for p in net.parameters() if p.requires_grad]
    for rows in rng.batches(what.seed, len(Y), what.offset, what.steps, what.batch):
        loss = nn.functional.cross_entropy(net(prepared(torch.from_numpy(X[rows]))), torch.from_numpy(Y[rows]))
        optimizer.zero_grad()
        loss.backward()
        if what.recipe.clip_norm:
            nn.utils.clip_grad_norm_(trained, what.recipe.clip_norm)
        if anchor is not None:
            flat = torch.from_numpy(anchor)
            for p, a in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
                p.grad += what.rho * (p.detach() - a.view_as(p))
        optimizer.step()
        total += loss.item()
    return total / what.steps


def optimizer_by_hand(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in net.parameters() if p.requires_grad]
    if recipe.optimizer == "adamw":
        kind = torch.optim.AdamW
        return kind(trained, recipe.learning_rate, recipe.betas, recipe.epsilon, recipe.weight_decay, foreach=False)
    rates = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
    return torch.optim.SGD(trained, recipe.learning_rate, **rates, foreach=False)


@pytest.mark.parametrize("changes", RECIPES, ids=lambda changes: ",".join(changes) or "sgd")
def test_a_task_is_the_loop_by_hand(changes: dict[str, object]) -> None:
    net, what = network(), task(**changes)
    reference = copy.deepcopy(net)
    loss = by_hand(reference, what, optimizer_by_hand(reference, what.recipe))
    kernel = TorchKernel(net, nn.functional.cross_entropy, prepared)
    start = vector_of(network())
    out = np.empty_like(start)
    report = kernel.run(what, start, None, SHARD, out)
    assert np.abs(start - out - vector_of(reference)).max() < 1e-12
    assert report.loss == pytest.approx(loss, abs=1e-12)
    assert (report.steps, report.samples, report.task) == (7, 112, 1)


def test_the_proximal_term_pulls_to_the_anchor() -> None:
    what = task(momentum=0.5)
    what = Task(**{**{f: getattr(what, f) for f in what.__struct_fields__}, "anchored": True, "rho": 0.3})
    anchor = np.random.default_rng(3).standard_normal(layout_of(network()).trainable)
    reference = network()
    by_hand(reference, what, optimizer_by_hand(reference, what.recipe), anchor)
    start = vector_of(network())
    out = np.empty_like(start)
    TorchKernel(network(), nn.functional.cross_entropy, prepared).run(what, start, anchor, SHARD, out)
    assert np.abs(start - out - vector_of(reference)).max() < 1e-12
    without = np.empty_like(start)
    TorchKernel(network(), nn.functional.cross_entropy, prepared).run(what, start, None, SHARD, without)
    assert np.abs(without - out).max() > 1e-3


def test_without_an_anchor_the_proximal_term_pulls_to_where_the_task_began() -> None:
    what, start = msgspec.structs.replace(task(momentum=0.5), rho=0.3), vector_of(network())
    found = []
    for anchor in (None, start[: layout_of(network()).trainable].copy()):
        found.append(np.empty_like(start))
        TorchKernel(network(), nn.functional.cross_entropy, prepared).run(what, start, anchor, SHARD, found[-1])
    assert found[0].tobytes() == found[1].tobytes()
    without = np.empty_like(start)
    TorchKernel(network(), nn.functional.cross_entropy, prepared).run(
        msgspec.structs.replace(what, rho=0.0), start, None, SHARD, without
    )
    assert np.abs(without - found[0]).max() > 1e-4


def test_the_learning_rate_follows_global_progress_not_the_tasks_own_count() -> None:
    recipe = Recipe(batch_size=16, learning_rate=0.05, schedule="linear", warmup=0.1)
    what = Task(
        id=1, version=0, shard="s", recipe=recipe, seed=5, offset=32, steps=7, batch=16, progress=0.05, pace=0.02
    )
    reference = network()
    optimizer = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], 0.0)
    rates = [recipe.rate(0.05 + 0.02 * step) for step in range(7)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[3] == pytest.approx(0.05 * (1 - 0.01 / 0.9))
    for step, rows in enumerate(rng.batches(5, len(Y), 32, 7, 16)):
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        output = reference(prepared(torch.from_numpy(X[rows])))
        nn.functional.cross_entropy(output, torch.from_numpy(Y[rows])).backward()
        optimizer.step()
    start = vector_of(network())
    out = np.empty_like(start)
    TorchKernel(network(), nn.functional.cross_entropy, prepared).run(what, start, None, SHARD, out)
    assert np.abs(start - out - vector_of(reference)).max() < 1e-12


def test_two_short_tasks_are_one_long_one_and_the_kernel_keeps_nothing_between_them() -> None:
    kernel = TorchKernel(network(), nn.functional.cross_entropy, prepared)
    start = vector_of(network())
    long, half, rest, other = (np.empty_like(start) for _ in range(4))
    kernel.run(task(steps=8), start, None, SHARD, long)
    first = task(steps=4)
    kernel.run(first, start, None, SHARD, half)
    kernel.run(task(steps=3, momentum=0.9), start, None, SHARD, other)
    second = Task(**{**{f: getattr(first, f) for f in first.__struct_fields__}, "offset": 32 + 64})
    kernel.run(second, start - half, None, SHARD, rest)
    assert np.abs(half + rest - long).max() < 1e-12


@pytest.mark.parametrize("name", models.NAMES)
def test_channels_last_changes_speed_not_results(name: str) -> None:
    shape = (1, 8, 8)
    x, y = X[:, :1], Y

    def run(double: bool) -> np.ndarray:
        net = models.build(name, shape, 5)
        net = net.double() if double else net
        kernel = TorchKernel(net, nn.functional.cross_entropy, prepared)
        start = vector_of(net)
        out = np.empty_like(start)
        kernel.run(task(learning_rate=0.01), start, None, {"x": x, "y": y}, out)
        return out

    difference = np.linalg.norm(run(False) - run(True)) / np.linalg.norm(run(True))
    assert difference < 1e-4


def test_one_channel_gets_channels_last_strides() -> None:
    x = torch.zeros(4, 1, 6, 5)
    assert channels_last(x).stride() == (30, 1, 5, 1)
    assert channels_last(torch.zeros(4, 3, 6, 5)).is_contiguous(memory_format=torch.channels_last)


def test_dropout_is_the_tasks_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 5))
    kernel = TorchKernel(net, nn.functional.cross_entropy)
    start = vector_of(net)
    outs = [np.empty_like(start) for _ in range(3)]
    kernel.run(task(), start, None, SHARD, outs[0])
    torch.rand(17)
    kernel.run(task(), start, None, SHARD, outs[1])
    assert np.array_equal(outs[0], outs[1])


def test_evaluation_counts_every_sample_once_and_does_not_train() -> None:
    net = models.build("resnet20", (3, 8, 8), 5, norm="batch")
    kernel = TorchKernel(net, nn.functional.cross_entropy)
    vector = vector_of(net)
    x, y = np.tile(X, (3, 1, 1, 1))[:251], np.tile(Y, 3)[:251]
    result = kernel.evaluate(vector, {"x": x, "y": y})
    net.eval()
    with torch.inference_mode():
        output = net(torch.from_numpy(x).float() / 255)
    assert result.samples == 251
    assert result.accuracy == pytest.approx((output.argmax(1).numpy() == y).mean())
    assert result.loss == pytest.approx(nn.functional.cross_entropy(output, torch.from_numpy(y)).item(), rel=1e-5)
    assert np.array_equal(vector, vector_of(net))


def test_running_statistics_come_back_as_they_are_and_counters_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    layout, vector = layout_of(net), vector_of(net)
    assert [spec.role for spec in layout.tensors[-3:]] == ["running-mean", "running-var", "counter"]
    out = np.empty_like(vector)
    reference = copy.deepcopy(net)
    TorchKernel(net, nn.functional.cross_entropy).run(task(steps=3), vector, None, SHARD, out)
    optimizer = torch.optim.SGD(reference.parameters(), 0.05)
    for rows in rng.batches(5, len(Y), 32, 3, 16):
        optimizer.zero_grad()
        output = reference(torch.from_numpy(X[rows]).float() / 255)
        nn.functional.cross_entropy(output, torch.from_numpy(Y[rows])).backward()
        optimizer.step()
    views = layout.views(out)
    assert np.allclose(views["1.running_mean"], reference[1].running_mean.numpy(), atol=1e-5)
    assert np.allclose(views["1.running_var"], reference[1].running_var.numpy(), atol=1e-5)
    assert views["1.num_batches_tracked"] == 3


def test_a_loss_that_blows_up_is_an_error_with_advice() -> None:
    net = network(double=False)
    kernel = TorchKernel(net, nn.functional.cross_entropy)
    start = vector_of(net)
    with pytest.raises(KernelError, match="lower the learning rate"):
        kernel.run(task(steps=60, learning_rate=1e20), start, None, SHARD, np.empty_like(start))
    with pytest.raises(KernelError, match="the loss is nan at the first step"):
        kernel.run(task(), np.full_like(start, np.nan), None, SHARD, np.empty_like(start))
