"""The layers that programs are promised to know, as named cases: training of small networks around each of them."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowered import Case

GENERATOR = np.random.default_rng(0)
SAMPLES, CLASSES = 24, 4
LABELS = GENERATOR.integers(0, CLASSES, SAMPLES)


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal((SAMPLES, *shape), dtype=np.float32)


LINE, IMAGE, VOLUME = normal(3, 9), normal(4, 8, 7), normal(2, 5, 6, 4)
SMALL = IMAGE[:, :, :4, :3]
WORDS = GENERATOR.integers(0, 11, (SAMPLES, 6))
BY_AXES = {1: LINE, 2: IMAGE, 3: VOLUME}


class Head(nn.Module):
    """A layer with trained parameters before and after it."""

    def __init__(self, layer: nn.Module, x: np.ndarray) -> None:
        super().__init__()
        channels, axes = x.shape[1], x.ndim - 2
        torch.manual_seed(0)
        kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
        self.before = kinds[axes - 1](channels, channels, 1) if axes else nn.Linear(channels, channels)
        self.layer = layer
        with torch.no_grad():
            width = layer(self.before(torch.from_numpy(x[:2]))).flatten(1).shape[1]
        self.after = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x)).flatten(1))


CONVOLUTIONS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "1d": (1, lambda: nn.Conv1d(3, 5, 3)),
    "1d stride padding dilation": (1, lambda: nn.Conv1d(3, 5, 3, stride=2, padding=2, dilation=2)),
    "1d groups": (1, lambda: nn.Conv1d(3, 6, 3, groups=3, bias=False)),
    "2d": (2, lambda: nn.Conv2d(4, 5, 3, padding=1)),
    "2d many channels": (2, lambda: nn.Sequential(nn.Conv2d(4, 9, 1), nn.Conv2d(9, 5, 3, padding=1))),
    "2d same": (2, lambda: nn.Conv2d(4, 5, 3, padding="same")),
    "2d no bias": (2, lambda: nn.Conv2d(4, 5, 3, bias=False)),
    "2d 1x1": (2, lambda: nn.Conv2d(4, 5, 1)),
    "2d stride": (2, lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1)),
    "2d stride 3 gaps": (2, lambda: nn.Conv2d(4, 5, 2, stride=3)),
    "2d uneven": (2, lambda: nn.Conv2d(4, 5, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1))),
    "2d wide padding": (2, lambda: nn.Conv2d(4, 5, 2, padding=3)),
    "2d groups": (2, lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1)),
    "2d depthwise": (2, lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2)),
    "2d depthwise multiplier": (2, lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False)),
    "3d": (3, lambda: nn.Conv3d(2, 3, 3, padding=1)),
    "3d dilation": (3, lambda: nn.Conv3d(2, 3, (2, 3, 2), padding=(1, 0, 2), dilation=(2, 2, 1))),
    "3d stride groups": (3, lambda: nn.Conv3d(2, 4, (3, 2, 2), stride=(2, 2, 1), groups=2)),
    "1d transposed": (1, lambda: nn.ConvTranspose1d(3, 4, 3, stride=2)),
    "1d transposed padding dilation groups": (
        1, lambda: nn.ConvTranspose1d(3, 6, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=3),
    ),
    "2d transposed": (2, lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)),
    "2d transposed groups": (2, lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=False)),
    "2d transposed depthwise": (2, lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=4)),
    "3d transposed": (3, lambda: nn.ConvTranspose3d(2, 2, 2, stride=2)),
    "3d transposed padding dilation groups": (
        3, lambda: nn.ConvTranspose3d(2, 4, (2, 3, 2), (1, 2, 1), padding=(1, 2, 0), dilation=(2, 1, 1), groups=2),
    ),
}  # fmt: skip
POOLING: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "max 1d": (1, lambda: nn.MaxPool1d(3)),
    "max 1d overlapping": (1, lambda: nn.MaxPool1d(3, 2, padding=1)),
    "max 1d ceil": (1, lambda: nn.MaxPool1d(2, ceil_mode=True)),
    "max 2d": (2, lambda: nn.MaxPool2d(2)),
    "max 2d 3x2": (2, lambda: nn.MaxPool2d((3, 2))),
    "max 2d overlapping": (2, lambda: nn.MaxPool2d(3, 2, padding=1)),
    "max 2d ceil": (2, lambda: nn.MaxPool2d(2, ceil_mode=True)),
    "max 2d ceil overlapping": (2, lambda: nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max 2d dilated": (2, lambda: nn.MaxPool2d(2, 2, dilation=2)),
    "max 2d gaps": (2, lambda: nn.MaxPool2d(2, 3)),
    "max 3d": (3, lambda: nn.MaxPool3d(2)),
    "max 3d overlapping": (3, lambda: nn.MaxPool3d(3, 2, padding=1)),
    "max 3d ceil": (3, lambda: nn.MaxPool3d((2, 3, 3), 2, padding=(0, 1, 0), ceil_mode=True)),
    "average 1d": (1, lambda: nn.AvgPool1d(2, 2)),
    "average 1d ceil": (1, lambda: nn.AvgPool1d(4, 3, padding=1, ceil_mode=True)),
    "average 2d": (2, lambda: nn.AvgPool2d(2)),
    "average 2d padded": (2, lambda: nn.AvgPool2d(3, 2, padding=1)),
    "average 2d not counting": (2, lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)),
    "average 2d ceil": (2, lambda: nn.AvgPool2d(3, 2, ceil_mode=True)),
    "average 2d divisor": (2, lambda: nn.AvgPool2d(2, divisor_override=3)),
    "average 3d": (3, lambda: nn.AvgPool3d(2)),
    "average 3d padded": (3, lambda: nn.AvgPool3d(3, 2, padding=1)),
    "average 3d ceil": (3, lambda: nn.AvgPool3d((2, 3, 3), 2, ceil_mode=True, count_include_pad=False)),
    "adaptive average 1d": (1, lambda: nn.AdaptiveAvgPool1d(4)),
    "adaptive average 2d": (2, lambda: nn.AdaptiveAvgPool2d((3, 5))),
    "adaptive average 2d to 1": (2, lambda: nn.AdaptiveAvgPool2d(1)),
    "adaptive average 3d": (3, lambda: nn.AdaptiveAvgPool3d((2, 3, 3))),
    "adaptive max 1d": (1, lambda: nn.AdaptiveMaxPool1d(3)),
    "adaptive max 2d": (2, lambda: nn.AdaptiveMaxPool2d((4, 7))),
    "adaptive max 2d to 1": (2, lambda: nn.AdaptiveMaxPool2d(1)),
    "adaptive max 3d": (3, lambda: nn.AdaptiveMaxPool3d((5, 3, 2))),
}
NORMS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "batch 1d": (1, lambda: nn.BatchNorm1d(3)),
    "batch 2d": (2, lambda: nn.BatchNorm2d(4)),
    "batch 2d plain": (2, lambda: nn.BatchNorm2d(4, momentum=0.3, affine=False)),
    "batch 3d": (3, lambda: nn.BatchNorm3d(2)),
    "group": (2, lambda: nn.GroupNorm(2, 4)),
    "group plain": (3, lambda: nn.GroupNorm(1, 2, affine=False)),
    "layer": (2, lambda: nn.LayerNorm([8, 7])),
    "layer last": (1, lambda: nn.LayerNorm(9, bias=False)),
    "layer plain": (2, lambda: nn.LayerNorm([4, 8, 7], elementwise_affine=False)),
    "instance 1d": (1, lambda: nn.InstanceNorm1d(3)),
    "instance 2d": (2, lambda: nn.InstanceNorm2d(4, affine=True)),
    "instance 3d": (3, lambda: nn.InstanceNorm3d(2, affine=True)),
    "rms": (2, lambda: nn.RMSNorm([8, 7])),
}
ACTIVATIONS: list[nn.Module] = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.ELU(0.7), nn.SELU(), nn.CELU(0.5), nn.GELU(),
    nn.GELU(approximate="tanh"), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 0.7), nn.Sigmoid(),
    nn.LogSigmoid(), nn.Tanh(), nn.Softplus(), nn.Softplus(2, 1), nn.Softsign(), nn.Tanhshrink(), nn.Hardshrink(0.3),
    nn.Softshrink(0.2), nn.Threshold(0.1, 0.2), nn.PReLU(), nn.PReLU(4), nn.Mish(), nn.GLU(1), nn.Softmax(1),
    nn.LogSoftmax(-1), nn.Softmin(2),
]  # fmt: skip
RESHAPING: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "nearest": (2, lambda: nn.Upsample(scale_factor=2)),
    "nearest uneven": (2, lambda: nn.Upsample(size=(11, 5))),
    "nearest 1d": (1, lambda: nn.Upsample(scale_factor=3)),
    "nearest 3d": (3, lambda: nn.Upsample(scale_factor=2)),
    "bilinear": (2, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear corners": (2, lambda: nn.Upsample(size=(5, 9), mode="bilinear", align_corners=True)),
    "bicubic": (2, lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    "linear": (1, lambda: nn.Upsample(scale_factor=2, mode="linear")),
    "trilinear": (3, lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
    "pixel shuffle": (2, lambda: nn.PixelShuffle(2)),
    "pixel unshuffle": (2, lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), nn.PixelUnshuffle(2))),
    "channel shuffle": (2, lambda: nn.ChannelShuffle(2)),
    "zeros": (2, lambda: nn.ZeroPad2d((1, 2, 0, 1))),
    "negative padding": (2, lambda: nn.ConstantPad2d((-1, 2, 0, -1), 0.5)),
    "reflect": (2, lambda: nn.ReflectionPad2d((1, 2, 3, 0))),
    "reflect 1d": (1, lambda: nn.ReflectionPad1d(2)),
    "replicate": (2, lambda: nn.ReplicationPad2d(2)),
    "replicate 3d": (3, lambda: nn.ReplicationPad3d(1)),
    "circular": (2, lambda: nn.CircularPad2d((1, 2, 0, 1))),
    "convolution, circular": (2, lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")),
    "convolution, reflect": (2, lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")),
    "unfold": (2, lambda: nn.Unfold(3)),
    "flatten": (2, lambda: nn.Flatten(2)),
}
DROPOUT: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "plain": (2, lambda: nn.Dropout(0.4)),
    "two": (2, lambda: nn.Sequential(nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.2))),
    "1d": (1, lambda: nn.Dropout1d(0.3)),
    "2d": (2, lambda: nn.Dropout2d(0.3)),
    "3d": (3, lambda: nn.Dropout3d(0.3)),
    "alpha": (2, lambda: nn.AlphaDropout(0.3)),
    "feature alpha": (2, lambda: nn.FeatureAlphaDropout(0.3)),
}


class Tokens(nn.Module):
    """Layers on sequences of words."""

    def __init__(self, layer: Callable[[Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.inner = nn.ModuleDict(modules)
        self.layer = layer
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.words(x), self.inner).mean(1))  # type: ignore[call-arg]


def causal(x: Tensor, inner: nn.ModuleDict) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return inner["attention"](x, x, x, attn_mask=mask, need_weights=False)[0]


SEQUENCES: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[[], nn.Module]]]] = {
    "embedding": (lambda x, inner: x, {}),
    "attention": (
        lambda x, inner: inner["a"](x, x, x)[0],
        {"a": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    "attention without weights, causal": (
        causal, {"attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    "attention, dropout": (
        lambda x, inner: inner["a"](x, x, x, need_weights=False)[0],
        {"a": lambda: nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)},
    ),
    "encoder layer": (
        lambda x, inner: inner["a"](x),
        {"a": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)},
    ),
    "lstm": (lambda x, inner: inner["a"](x)[0], {"a": lambda: nn.LSTM(8, 8, batch_first=True)}),
    "lstm, two layers, both ways": (
        lambda x, inner: inner["a"](x)[0],
        {"a": lambda: nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)},
    ),
    "gru": (lambda x, inner: inner["a"](x)[0], {"a": lambda: nn.GRU(8, 8, batch_first=True)}),
    "rnn": (lambda x, inner: inner["a"](x)[0], {"a": lambda: nn.RNN(8, 8, batch_first=True)}),
    "convolution over time": (
        lambda x, inner: inner["a"](x.transpose(1, 2)).transpose(1, 2),
        {"a": lambda: nn.Conv1d(8, 8, 3, padding=1)},
    ),
}  # fmt: skip


class Odd(nn.Module):
    """A function of an image as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "concatenation": lambda x: torch.cat([x, x.tanh(), x.sigmoid()], 1),
    "concatenation of nine": lambda x: torch.cat([x * k for k in range(1, 10)], 1),
    "residual": lambda x: x + functional.relu(x),
    "chunks": lambda x: torch.stack([part.sum(1) for part in x.chunk(2, 1)], 1),
    "every other": lambda x: x[:, :, ::2, 1::3],
    "index list": lambda x: x[:, [0, 2, 2, -1]],
    "select": lambda x: x[:, 1] * x[:, -1],
    "flip and roll": lambda x: x.flip(2, 3) + x.roll(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, x),
    "extremes": lambda x: torch.cat([x.amax(2), x.amin(2), x.max(3).values.sum(2, keepdim=True)], 2),
    "powers": lambda x: x.square() + x.abs().pow(1.5) + (x.abs() + 1).rsqrt() + x.pow(3),
    "exponentials": lambda x: x.exp().log1p() + x.expm1() + (x.abs() + 0.5).log(),
    "trigonometry": lambda x: x.sin() * x.cos() + x.atan(),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + torch.maximum(x, x.flip(3)),
    "masked fill": lambda x: x.masked_fill(x > 0.3, 0.0),
    "variance": lambda x: x.var((2, 3)) + x.std(1).sum((1, 2)).unsqueeze(1),
    "norms": lambda x: functional.normalize(x, dim=1) + x.norm(dim=1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1),
    "cumulative sum": lambda x: x.cumsum(2),
    "in place": lambda x: x.clone().mul_(2).add_(1)[:, :2].relu_(),
    "assignment": lambda x: assigned(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, 1),
    "division": lambda x: x / (1 + x.abs()) + (x.detach() // 0.5),
    "type": lambda x: x * (x > 0).to(x.dtype) + x.long().to(x.dtype),
    "cosine similarity": lambda x: functional.cosine_similarity(x[:, :2], x[:, 2:], dim=1),
    "stop gradient": lambda x: x * x.detach().sigmoid(),
    "sorted": lambda x: x.sort(3).values,
    "gather": lambda x: x.gather(1, torch.ones(x.shape[0], 2, *x.shape[2:], dtype=torch.int64)),
}  # fmt: skip


def assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:3] = x[:, :2]
    y[:, 0, ::2] = x[:, 3, ::2]
    return y


def layer(make: Callable[[], nn.Module], x: np.ndarray) -> Case:
    return Case(lambda: Head(make(), x), x, LABELS)


def sequence(function: Callable[..., Tensor], modules: dict[str, Callable[[], nn.Module]]) -> Case:
    return Case(lambda: Tokens(function, **{key: make() for key, make in modules.items()}), WORDS, LABELS)


GROUPS = {
    "convolution": CONVOLUTIONS, "pooling": POOLING, "norm": NORMS, "reshaping": RESHAPING, "dropout": DROPOUT,
}  # fmt: skip
LAYERS: dict[str, Case] = {
    **{
        f"{group}: {name}": layer(make, BY_AXES[axes])
        for group, table in GROUPS.items()
        for name, (axes, make) in table.items()
    },
    **{f"activation: {found}": layer(partial(copy.deepcopy, found), SMALL) for found in ACTIVATIONS},
    **{f"sequence: {name}": sequence(*entry) for name, entry in SEQUENCES.items()},
    **{f"function: {name}": layer(partial(Odd, function), IMAGE) for name, function in FUNCTIONS.items()},
}


class Scale(nn.Module):
    """A trained number a channel: equal values stay equal, step after step."""

    def __init__(self, x: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(x.shape[1], *[1] * (x.ndim - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def tied(layer: nn.Module, bits: np.ndarray) -> nn.Module:
    """Zeros and ones reach the layer."""
    model = Head(nn.Sequential(nn.ReLU(), copy.deepcopy(layer)), bits)
    model.before = Scale(bits)
    return model


BITS = {  # ties in nearly every window, zeros after ReLU
    axes: GENERATOR.integers(0, 2, x.shape).astype(np.float32) for axes, x in BY_AXES.items()
}
TIED: list[tuple[int, nn.Module]] = [
    (1, nn.MaxPool1d(3)), (1, nn.MaxPool1d(3, 2, padding=1)), (2, nn.MaxPool2d(2)),
    (2, nn.MaxPool2d(3, 2, padding=1)), (2, nn.MaxPool2d((2, 4))), (2, nn.MaxPool2d(2, 2, dilation=2)),
    (2, nn.MaxPool2d(3, 2, ceil_mode=True)), (2, nn.AdaptiveMaxPool2d((4, 1))), (3, nn.MaxPool3d(2)),
    (3, nn.MaxPool3d(3, 2, padding=1)),
]  # fmt: skip
TIES: dict[str, Case] = {
    f"ties: {found}": Case(partial(tied, found, BITS[axes]), BITS[axes], LABELS) for axes, found in TIED
}
