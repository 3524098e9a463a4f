"""Whole networks, losses, optimizers and augmentation: twenty steps give PyTorch's update."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainpool as tp
from lowered import agree, task_of
from trainpool import models, rng
from trainpool.augment import Noise, RandomCrop, RandomFlip
from trainpool.errors import LoweringError, ModelError
from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.protocol import KernelError
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.lowering import lower
from trainpool.messages import Recipe, Task

GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
COLOURS = GENERATOR.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 5, 40)
SHARD = {"x": BYTES, "y": LABELS}
PLAIN = {"learning_rate": 0.02, "batch_size": 8}


class Separable(nn.Sequential):
    """Depthwise and pointwise convolutions, as MobileNet."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5),
        )  # fmt: skip


class UNet(nn.Module):
    """Down, up, and a shortcut; a class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.norm, self.out = nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(self.down1(x))
        b = functional.relu(self.down2(functional.max_pool2d(a, 2)))
        return self.out(self.norm(torch.cat([a, self.up(b)], 1)))


class ViT(nn.Module):
    """Patches, a class token, one transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        words = self.patches(x).flatten(2).transpose(1, 2)
        words = torch.cat([self.token.expand(len(x), -1, -1), words], 1) + self.places
        return self.head(self.layer(words)[:, 0])


class Video(nn.Sequential):
    """Convolutions in space, then in time: R(2+1)D."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(6), nn.ReLU(),
            nn.Conv3d(6, 6, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip


class Shared(nn.Module):
    """One weight in two places, a frozen one, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 5), nn.Linear(64, 5)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.a(x) + torch.tanh(self.b(x * x))


FILM = GENERATOR.integers(0, 256, (24, 3, 4, 6, 6), dtype=np.uint8)
PIXELS = GENERATOR.integers(0, 4, (40, 8, 8))
NETWORKS = {
    "cnn": (lambda: models.build("cnn", (1, 8, 8), 5), BYTES, LABELS, {}, 0.0),
    "cnn, proximal": (lambda: models.build("cnn", (1, 8, 8), 5), BYTES, LABELS, {"momentum": 0.9}, 0.3),
    "mlp": (lambda: models.build("mlp", (1, 8, 8), 5), BYTES, LABELS, {"optimizer": "adamw", "weight_decay": 0.1}, 0.0),
    "logistic": (
        lambda: models.build("logistic", (1, 8, 8), 5), BYTES, LABELS,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip_norm": 0.5}, 0.1,
    ),
    "resnet20": (lambda: models.build("resnet20", (3, 8, 8), 5), COLOURS, LABELS, {"learning_rate": 1e-3}, 0.0),
    "resnet20, batch": (
        lambda: models.build("resnet20", (3, 8, 8), 5, norm="batch"), COLOURS, LABELS,
        {"learning_rate": 1e-3, "momentum": 0.9}, 0.0,
    ),
    "separable": (Separable, COLOURS, LABELS, {"momentum": 0.9}, 0.0),
    "u-net": (UNet, COLOURS, PIXELS, {"optimizer": "adamw", "clip_norm": 1.0}, 0.0),
    "vit": (ViT, COLOURS, LABELS, {"optimizer": "adamw", "betas": (0.8, 0.95), "epsilon": 1e-6}, 0.2),
    "video": (Video, FILM, LABELS[:24], {}, 0.0),
    "shared weights": (Shared, BYTES, LABELS, {"weight_decay": 0.1}, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_as_in_pytorch(name: str) -> None:
    make, x, y, changes, rho = NETWORKS[name]
    torch.manual_seed(0)
    agree(make(), x, y, recipe=Recipe(**{**PLAIN, **changes}), steps=20, rho=rho)


def masked(output: Tensor, target: Tensor) -> Tensor:
    seen = (target > 0).to(output.dtype)
    return (functional.mse_loss(output, target, reduction="none") * seen).sum() / seen.sum().clamp(min=1)


REAL = GENERATOR.standard_normal((40, 5), dtype=np.float32)
LOSSES = {
    "cross-entropy": ("cross-entropy", LABELS),
    "cross-entropy of distributions": ("cross-entropy", np.exp(REAL) / np.exp(REAL).sum(1, keepdims=True)),
    "half-squared-error": ("half-squared-error", LABELS),
    "mse": ("mse", REAL),
    "smoothed": (lambda o, t: functional.cross_entropy(o, t, label_smoothing=0.1), LABELS),
    "weighted": (lambda o, t: functional.cross_entropy(o, t, weight=torch.arange(1.0, 6.0).to(o.dtype)), LABELS),
    "ignoring": (lambda o, t: functional.cross_entropy(o, t, ignore_index=2), LABELS),
    "binary": (lambda o, t: functional.binary_cross_entropy_with_logits(o, t), (REAL > 0).astype(np.float32)),
    "smooth l1": (lambda o, t: functional.smooth_l1_loss(o, t), REAL),
    "huber": (lambda o, t: functional.huber_loss(o, t, delta=0.5), REAL),
    "divergence": (lambda o, t: functional.kl_div(o.log_softmax(1), t.softmax(1), reduction="batchmean"), REAL),
    "masked": (masked, REAL),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_as_in_pytorch(name: str) -> None:
    loss, y = LOSSES[name]
    torch.manual_seed(0)
    agree(models.build("logistic", (1, 8, 8), 5), BYTES, y, loss=loss, recipe=Recipe(**PLAIN))


@pytest.mark.parametrize(
    "augment", [RandomCrop(2), RandomFlip(), Noise(10.0), nn.Sequential(RandomCrop(1), RandomFlip())], ids=str
)
def test_augmentation_draws_the_same_numbers_on_both_kernels(augment: nn.Module) -> None:
    model = models.build("logistic", (1, 8, 8), 5)
    lowered = agree(model, BYTES, LABELS, augment=augment, recipe=Recipe(**PLAIN))
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


REFUSED = {
    "a value decides": (lambda y: y if y.sum() > 0 else -y, "depends on a tensor's value.*test_lowering_networks.py"),
    "boolean index": (lambda y: y * y[y > 0].sum(), "depend.*torch.where or a mask|depends on values"),
    "no form": (
        lambda y: y + torch.linalg.inv(y.T @ y + torch.eye(5)).sum(),
        "linalg_inv.*test_lowering_networks.py, line",
    ),
    "permutation": (lambda y: y[torch.randperm(len(y))], "torch.randperm.*sort torch.rand"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_named_with_its_place(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        lower(tp.Experiment(Branch(function), (BYTES, LABELS)), Recipe(**PLAIN))


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


def test_recurrent_dropout_is_refused_with_advice() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(8, 4, 2, dropout=0.5, batch_first=True), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x.squeeze(1))[0][:, -1])

    with pytest.raises(ModelError, match=r"one nn\.LSTM a layer"):
        lower(tp.Experiment(Words(), (BYTES, LABELS)), Recipe(**PLAIN))


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
