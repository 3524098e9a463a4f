"""Whole networks, losses, optimizers and augmentation: twenty steps give PyTorch's update."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainpool as tp
from lowered import task_of
from network_cases import AUGMENTATIONS, BYTES, COLOURS, LABELS, LOSSES, NETWORKS, PLAIN, SHARD
from trainpool import models, rng
from trainpool.augment import RandomCrop, RandomFlip
from trainpool.errors import LoweringError, ModelError
from trainpool.kernels.noise import Noise as RandomNumbers
from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.protocol import Arrays, KernelError
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.lowering import lower
from trainpool.messages import Recipe, Report, Task
from trainpool.vector import Vector


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_as_in_pytorch(name: str) -> None:
    NETWORKS[name].agrees(attempts=3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_as_in_pytorch(name: str) -> None:
    LOSSES[name].agrees()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_draws_the_same_numbers_on_both_kernels(name: str) -> None:
    model = AUGMENTATIONS[name].model()
    lowered = AUGMENTATIONS[name].agrees()
    assert lowered.program.noise
    plain = lower(tp.Experiment(model, (BYTES, LABELS)), Recipe(**PLAIN), proximal=False)
    outs = []
    for program in (lowered, plain):
        vector = vector_of(model)
        outs.append(np.empty_like(vector))
        OnnxKernel(program.loaded).run(task_of(Recipe(**PLAIN), 3, 8), vector, None, SHARD, outs[-1])
    assert np.linalg.norm(outs[0] - outs[1]) > 1e-3 * np.linalg.norm(outs[1])


def test_crops_and_flips_only_move_pixels() -> None:
    x = torch.from_numpy(COLOURS)
    torch.manual_seed(1)
    flipped = RandomFlip()(x)
    same = [torch.equal(a, b) for a, b in zip(x, flipped, strict=True)]
    turned = [torch.equal(a.flip(2), b) for a, b in zip(x, flipped, strict=True)]
    assert all(a or b for a, b in zip(same, turned, strict=True))
    assert 0 < sum(turned) < len(x)
    moved = RandomCrop(2)(x)
    wide = functional.pad(x, (2, 2, 2, 2))
    windows = [[wide[:, :, i : i + 8, j : j + 8] for i in range(5)] for j in range(5)]
    found = [any(torch.equal(w[k], moved[k]) for row in windows for w in row) for k in range(len(x))]
    assert all(found)
    assert not torch.equal(moved, x)


def test_a_step_without_random_operators_is_not_watched_after_the_first() -> None:
    kernel = TorchKernel(models.build("logistic", (1, 8, 8), 5), functional.cross_entropy)
    noisy = TorchKernel(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 5)), functional.cross_entropy)
    task = Task(id=0, version=0, shard="s", recipe=Recipe(**PLAIN), seed=1, offset=0, steps=2, batch=8)
    for k in (kernel, noisy):
        vector = vector_of(k.model)
        k.run(task, vector, None, {"x": BYTES, "y": LABELS}, np.empty_like(vector))
    assert (kernel.random, noisy.random) == (False, True)


def test_noise_is_a_stream_of_its_own_for_each_operator_step_and_seed() -> None:
    base = rng.noise(1, 0, 0, 1000)
    assert base.dtype == np.float32
    assert 0 <= base.min() < 0.01
    assert 0.99 < base.max() < 1
    for other in (rng.noise(2, 0, 0, 1000), rng.noise(1, 1, 0, 1000), rng.noise(1, 0, 32, 1000)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.15
    np.testing.assert_array_equal(rng.noise(1, 0, 0, 10), base[:10])
    k = rng.fold(rng.fold(rng.fold(rng.key(7), 2), 3), 64)
    np.testing.assert_array_equal(rng.noise(7, 3, 64, 5), rng.uniform(k, 0, 5))


class Branch(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.line, self.function = nn.Linear(64, 5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.line(x.flatten(1)))  # type: ignore[operator]


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.pool, self.back = nn.Linear(64, 5), nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.back(*self.pool(x)).flatten(1))


LINE = r"test_lowering_networks.py, line \d+: "
REFUSED = {
    "a value decides": (lambda y: y if y.sum() > 0 else -y, rf"depends on a tensor's value.*{LINE}.*if y.sum\(\) > 0"),
    "boolean index": (lambda y: y * y[y > 0].sum(), "depend.*torch.where or a mask|depends on values"),
    "no form": (
        lambda y: y + torch.linalg.inv(y.T @ y + torch.eye(5)).sum(),
        rf"linalg_inv.*{LINE}lambda y: y \+ torch.linalg.inv",
    ),
    "a mistake": (lambda y: y.reshape(2, 5), rf"shape.*module part; {LINE}.*reshape"),
    "permutation": (lambda y: y[torch.randperm(len(y))], rf"sort torch.rand.*\(module part; {LINE}.*y\[torch.randperm"),
    "random leak": (lambda y: functional.rrelu(y, training=True), rf"use leaky_relu \(module part; {LINE}.*rrelu\(y"),
    "random words": (
        lambda y: y + torch.multinomial(y.softmax(1), 1), rf"torch.multinomial.*\(module part; {LINE}.*y.softmax"
    ),
    "soft choice": (lambda y: functional.gumbel_softmax(y), rf"torch.rand.*\(module part; {LINE}.*gumbel_softmax\(y"),
    "dropout between layers": (
        nn.LSTM(5, 5, 2, dropout=0.5), rf"one nn\.LSTM a layer.*\(module part.function; {LINE}return self.function"
    ),
    "cumulative statistics": (nn.BatchNorm1d(5, momentum=None), "module part.function: BatchNorm1d.*give it a mom"),
}  # fmt: skip


class Outer(nn.Module):
    """With a module of a name around what is tried."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        found = self.part(x)
        return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_named_with_its_place(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(ModelError, match=words) as caught:
        lower(tp.Experiment(Outer(Branch(function)), (BYTES, LABELS)), Recipe(**PLAIN))
    assert "\n" not in str(caught.value)


def test_the_places_that_pooling_chose_are_refused_where_they_are_used() -> None:
    words = rf"indices of max-pooling.*\(module back; {LINE}return self.line\(self.back"
    with pytest.raises(LoweringError, match=words):
        lower(tp.Experiment(Unpooled(), (BYTES, LABELS)), Recipe(**PLAIN))


def test_a_model_with_hidden_state_is_not_saved(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.calls = nn.Linear(64, 5), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.line(x.flatten(1)) * self.calls

    with pytest.raises(LoweringError, match="not what PyTorch computes"):
        lower(tp.Experiment(Counting(), (BYTES, LABELS)), Recipe(**PLAIN)).save(tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("wrong", "good"), [({1}, True), ({1, 2, 3, 4}, True), ({2, 3, 4, 5}, True), ({1, 2, 3, 4, 5}, False)]
)
def test_what_rounding_decides_in_one_task_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, wrong: set[int], good: bool
) -> None:
    honest = OnnxKernel.run

    def run(self: OnnxKernel, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        report = honest(self, task, vector, anchor, shard, out)
        out *= 1.01 if task.seed in wrong else 1  # type: ignore[misc]
        return report

    monkeypatch.setattr(OnnxKernel, "run", run)
    made = lower(tp.Experiment(models.build("logistic", (1, 8, 8), 5), (BYTES, LABELS)), Recipe(**PLAIN))
    assert made.comparison.agrees == good
    assert (made.comparison.exact > 5e-3) != good


class Careful(nn.Module):
    """Insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x.float().flatten(1))


def floats(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, weight=torch.arange(1.0, 6.0))


@pytest.mark.parametrize(("make", "loss"), [(Careful, "cross-entropy"), (LOSSES["mse"].make, floats)])
def test_what_runs_in_float32_alone_is_compared_in_float32(make: Callable[[], nn.Module], loss: Any) -> None:
    made = lower(tp.Experiment(make(), (BYTES, LABELS), loss=loss), Recipe(**PLAIN))
    assert made.comparison.exact is None
    assert made.comparison.agrees
    assert made.comparison.apart == made.comparison.update < 1e-4


def ignoring(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, ignore_index=2)


def smoothed(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, label_smoothing=0.1)


@pytest.mark.parametrize("loss", ["cross-entropy", "half-squared-error", ignoring, smoothed])
def test_a_label_that_is_no_class_does_not_train(loss: Any) -> None:
    model = models.build("logistic", (1, 8, 8), 5)
    kernel = OnnxKernel(lower(tp.Experiment(model, (BYTES, LABELS), loss=loss), Recipe(**PLAIN)).loaded)
    vector = vector_of(model)
    task = task_of(Recipe(**PLAIN), 5, 8)
    for label in (5, 7, -1):
        y = np.where(np.arange(40) % 5 == 3, label, LABELS)
        with pytest.raises(KernelError, match="the loss is nan at the first step"):
            kernel.run(task, vector, None, {"x": BYTES, "y": y}, np.empty_like(vector))
    if loss == "cross-entropy":  # PyTorch's own number for what is to be left out
        y, out = np.where(np.arange(40) % 5 == 3, -100, LABELS), np.empty_like(vector)
        shard = {"x": BYTES, "y": y}
        torchs = TorchKernel(copy.deepcopy(model), functional.cross_entropy).run(task, vector, None, shard, out)
        assert kernel.run(task, vector, None, shard, out).loss == pytest.approx(torchs.loss, rel=1e-5)


@pytest.mark.parametrize("loss", [floats, ignoring])
@pytest.mark.parametrize("rare", [False, True])
def test_a_loss_that_is_no_mean_is_evaluated_batch_by_batch_whatever_the_datas_order(loss: Any, rare: bool) -> None:
    model = models.build("logistic", (1, 8, 8), 5)
    x = np.random.default_rng(3).integers(0, 256, (500, 1, 8, 8), dtype=np.uint8)
    y = np.sort(np.random.default_rng(4).integers(0, 5, 500))
    if rare:  # nothing but one class
        y[:] = 3
    lowered = lower(tp.Experiment(model, (x, y), loss=loss), Recipe(**PLAIN))
    vector, test = vector_of(model), {"x": x, "y": np.arange(500) * 3 % 5}
    ours = OnnxKernel(lowered.loaded).evaluate(vector, test).loss
    assert ours == pytest.approx(TorchKernel(model, loss).evaluate(vector, test).loss, rel=1e-5)


def test_without_an_anchor_the_proximal_term_pulls_to_where_the_task_began() -> None:
    model = models.build("logistic", (1, 8, 8), 5)
    kernel = OnnxKernel(lower(tp.Experiment(model, (BYTES, LABELS)), Recipe(**PLAIN)).loaded)
    start, found = vector_of(model), []
    for rho, anchor in ((0.3, None), (0.3, start), (0.0, None)):
        task = Task(id=0, version=0, shard="s", recipe=Recipe(**PLAIN), seed=1, offset=0, steps=5, batch=8, rho=rho)
        found.append(np.empty_like(start))
        kernel.run(task, start, anchor, {"x": BYTES, "y": LABELS}, found[-1])
    assert found[0].tobytes() == found[1].tobytes() != found[2].tobytes()


def test_the_kernel_refuses_tasks_that_the_program_is_not_for_and_losses_that_blow_up() -> None:
    model = models.build("logistic", (1, 8, 8), 5)
    experiment = tp.Experiment(model, (BYTES, LABELS))
    kernel = OnnxKernel(lower(experiment, Recipe(**PLAIN), proximal=False).loaded)
    vector = vector_of(model)
    out, shard = np.empty_like(vector), {"x": BYTES, "y": LABELS}

    def run(batch: int = 8, rho: float = 0.0, start: np.ndarray = vector, **changes: object) -> None:
        recipe = Recipe(**{**PLAIN, **changes})
        task = Task(
            id=0, version=0, shard="s", recipe=recipe, seed=1, offset=0, steps=5, batch=batch, anchored=True, rho=rho
        )
        kernel.run(task, start, start, shard, out)

    run(betas=(0.1, 0.2))  # of no use to sgd
    for changes, words in (
        ({"momentum": 0.9}, "lowered for momentum 0.0, but the task wants 0.9"),
        ({"batch": 7}, "batches of 8, but the task wants 7"),
        ({"rho": 1.0}, "without one"),
        ({"start": np.full_like(vector, np.nan)}, "the loss is nan at the first step"),
        ({"learning_rate": 1e38}, "lower the learning rate or set clip_norm"),
    ):
        with pytest.raises(KernelError, match=words):
            run(**changes)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="takes x of type uint8"):
        kernel.evaluate(vector, {"x": BYTES.astype(np.float32), "y": LABELS})


def test_evaluation_counts_every_sample_once() -> None:
    model = models.build("cnn", (1, 8, 8), 5)
    x, y = np.tile(BYTES, (7, 1, 1, 1))[:251], np.tile(LABELS, 7)[:251]
    lowered = lower(tp.Experiment(model, (x, y)), Recipe(**PLAIN))
    vector = vector_of(model)
    ours = OnnxKernel(lowered.loaded).evaluate(vector, {"x": x, "y": y})
    torchs = TorchKernel(copy.deepcopy(model), functional.cross_entropy).evaluate(vector, {"x": x, "y": y})
    assert (ours.samples, ours.accuracy) == (251, torchs.accuracy)
    assert ours.loss == pytest.approx(torchs.loss, rel=1e-5)


def test_random_numbers_keep_their_bounds_and_take_tensors() -> None:
    largest = np.nextafter(np.float32(1), np.float32(0))
    with RandomNumbers(lambda shape: torch.full(shape, float(largest))):
        assert torch.randint(1000, 1002, (3,)).tolist() == [1001] * 3
        assert torch.randint(7, (2,)).tolist() == [6, 6]
        assert torch.normal(torch.ones(2, 1), 0.0).tolist() == [[1.0], [1.0]]
        assert torch.normal(torch.ones(2, 1), torch.zeros(3)).shape == (2, 3)
