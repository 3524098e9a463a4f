"""Whole networks, losses and augmentation as named cases."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowered import Case
from trainpool import models
from trainpool.augment import Noise, RandomCrop, RandomFlip
from trainpool.messages import Recipe

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


class Language(nn.Module):
    """The next word from those before it; a buffer holds the mask, -inf above the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 8), nn.Parameter(torch.zeros(6, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.out = nn.Linear(8, 9)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.words(x) + self.places, src_mask=self.mask, is_causal=True))


def each_word(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


FILM = GENERATOR.integers(0, 256, (24, 3, 4, 6, 6), dtype=np.uint8)
PIXELS = GENERATOR.integers(0, 4, (40, 8, 8))


def masked(output: Tensor, target: Tensor) -> Tensor:
    seen = (target > 0).to(output.dtype)
    return (functional.mse_loss(output, target, reduction="none") * seen).sum() / seen.sum().clamp(min=1)


logistic = partial(models.build, "logistic", (1, 8, 8), 5)
resnet20 = partial(models.build, "resnet20", (3, 8, 8), 5)
SLOW = {"learning_rate": 1e-3}
"""Twenty steps of a deep network at a higher rate multiply what rounding began."""
BODIES: dict[str, tuple[Callable[[], nn.Module], np.ndarray, np.ndarray, dict[str, float]]] = {
    "cnn": (partial(models.build, "cnn", (1, 8, 8), 5), BYTES, LABELS, {}),
    "mlp": (partial(models.build, "mlp", (1, 8, 8), 5), BYTES, LABELS, {}),
    "logistic": (logistic, BYTES, LABELS, {}),
    "resnet20": (resnet20, COLOURS, LABELS, SLOW),
    "resnet20 with BatchNorm": (partial(resnet20, norm="batch"), COLOURS, LABELS, SLOW),
    "separable": (Separable, COLOURS, LABELS, {}),
    "u-net": (UNet, COLOURS, PIXELS, {}),
    "vit": (ViT, COLOURS, LABELS, {}),
    "video": (Video, FILM, LABELS[:24], {}),
}
WAYS: dict[str, tuple[dict[str, Any], float, bool]] = {
    "momentum": ({"momentum": 0.9}, 0.0, False),
    "adamw": ({"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 1e-3, "epsilon": 1e-4}, 0.0, False),
    "proximal": ({}, 0.3, False),
    "dropout": ({}, 0.0, True),
}
"""Of each: changes of the recipe, rho, whether dropout comes before the network.

AdamW's epsilon is above what rounding leaves of gradients that are zero, as of a bias before BatchNorm: a smaller one
would make steps of the learning rate's size out of it.
"""


def dropped(make: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), make())


def network(
    make: Callable[[], nn.Module], x: np.ndarray, y: np.ndarray, changes: dict[str, Any], rho: float, dropout: bool
) -> Case:
    return Case(partial(dropped, make) if dropout else make, x, y, recipe=Recipe(**PLAIN | changes), steps=20, rho=rho)


NETWORKS: dict[str, Case] = {
    **{
        f"{name}, {way}": network(make, x, y, own | changes, rho, dropout)
        for name, (make, x, y, own) in BODIES.items()
        for way, (changes, rho, dropout) in WAYS.items()
    },
    "logistic, all of SGD": network(
        logistic, BYTES, LABELS, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip_norm": 0.5}, 0.1, False
    ),
    "u-net, all of AdamW": network(
        UNet, COLOURS, PIXELS, {"optimizer": "adamw", "clip_norm": 1.0, "betas": (0.8, 0.95), "epsilon": 1e-6},
        0.2, False,
    ),
    "shared weights": network(Shared, BYTES, LABELS, {"weight_decay": 0.1}, 0.1, False),
}  # fmt: skip
WORDS = GENERATOR.integers(0, 9, (40, 6))
NETWORKS["language"] = Case(Language, WORDS, (WORDS + 1) % 9, each_word, Recipe(**PLAIN), 20)
REAL = GENERATOR.standard_normal((40, 5), dtype=np.float32)
LOSSES: dict[str, Case] = {
    name: Case(logistic, BYTES, y, loss=loss, recipe=Recipe(**PLAIN))
    for name, (loss, y) in {
        "cross-entropy": ("cross-entropy", LABELS),
        "cross-entropy of distributions": ("cross-entropy", np.exp(REAL) / np.exp(REAL).sum(1, keepdims=True)),
        "half-squared-error": ("half-squared-error", LABELS),
        "mse": ("mse", REAL),
        "smoothed": (lambda o, t: functional.cross_entropy(o, t, label_smoothing=0.1), LABELS),
        "weighted": (lambda o, t: functional.cross_entropy(o, t, weight=torch.arange(1.0, 6.0).to(o.dtype)), LABELS),
        "weighted, as a module": (nn.CrossEntropyLoss(weight=torch.arange(1.0, 6.0)), LABELS),
        "ignoring": (lambda o, t: functional.cross_entropy(o, t, ignore_index=2), LABELS),
        "binary": (lambda o, t: functional.binary_cross_entropy_with_logits(o, t), (REAL > 0).astype(np.float32)),
        "smooth l1": (lambda o, t: functional.smooth_l1_loss(o, t), REAL),
        "huber": (lambda o, t: functional.huber_loss(o, t, delta=0.5), REAL),
        "divergence": (lambda o, t: functional.kl_div(o.log_softmax(1), t.softmax(1), reduction="batchmean"), REAL),
        "masked": (masked, REAL),
    }.items()
}
AUGMENTATIONS: dict[str, Case] = {
    str(augment): Case(logistic, BYTES, LABELS, augment=augment, recipe=Recipe(**PLAIN))
    for augment in (RandomCrop(2), RandomFlip(), Noise(10.0), nn.Sequential(RandomCrop(1), RandomFlip()))
}
