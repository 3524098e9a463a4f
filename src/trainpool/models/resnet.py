"""ResNet-20, the residual network for small images.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (n = 3, shortcuts of
option A). Deviation: group normalisation by default, because a batch's statistics differ from worker to worker where
shards do, and running averages of them belong to no one (Hsieh, Phanishayee, Mutlu, Gibbons, "The Non-IID Data
Quagmire of Decentralized Machine Learning", ICML 2020).
"""

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from trainpool.errors import ConfigError, did_you_mean

__all__ = ["ResNet20"]

GROUPS = 8
"""Of 2, 4 and 8 channels in the three stages, whose 16, 32 and 64 channels it divides."""


class Block(nn.Module):
    """Two convolutions and a shortcut around them: relu(x + f(x))."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.stride, self.added = stride, channels - channels_in
        self.convolution1 = convolution(channels_in, channels, stride)
        self.norm1 = normalisation(channels, norm)
        self.convolution2 = convolution(channels, channels)
        self.norm2 = normalisation(channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, channels_in, H, W]` to `[n, channels, H/stride, W/stride]`, rounded up."""
        y = relu(self.norm1(self.convolution1(x)))
        y = self.norm2(self.convolution2(y))
        return relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th pixel, and zeros for the channels that x lacks; no parameters."""
        if self.stride == 1 and not self.added:
            return x
        before = self.added // 2
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))


class ResNet20(nn.Module):
    """One convolution, three stages of three blocks with 16, 32 and 64 channels, global average, one linear layer.

    `norm` is `group` (GroupNorm, 8 groups) or `batch` (BatchNorm, as in the paper). In: float `[n, C, H, W]`.
    Out: `[n, classes]`, before the softmax.

    Raises:
        ConfigError: samples are not images, or `norm` is unknown.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, norm: str = "group") -> None:
        super().__init__()
        if len(shape) != 3:
            raise ConfigError(f"resnet20 needs images of shape (C, H, W), not samples of shape {shape}; try mlp")
        self.convolution = convolution(shape[0], 16)
        self.norm = normalisation(16, norm)
        stages = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.blocks = nn.Sequential(
            *(
                Block(channels_in if i == 0 else channels, channels, stride if i == 0 else 1, norm)
                for channels_in, channels, stride in stages
                for i in range(3)
            )
        )
        self.output = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Forward propagation."""
        x = relu(self.norm(self.convolution(x)))  # [n, 16, H, W]
        x = self.blocks(x)  # [n, 64, H/4, W/4]
        y: Tensor = self.output(x.mean((2, 3)))
        return y


def convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias, which the normalisation after it has, initialised as the paper's reference 13.

    He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015.
    """
    layer = nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def normalisation(channels: int, norm: str) -> nn.Module:
    """The normalisation of that name."""
    if norm == "group":
        return nn.GroupNorm(GROUPS, channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    raise ConfigError(f"no norm {norm!r}{did_you_mean(norm, ('group', 'batch'))}; there are: group, batch")
