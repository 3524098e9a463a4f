"""A convolutional network as textbooks draw it."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from trainpool.errors import ConfigError

__all__ = ["CNN"]


class CNN(nn.Module):
    """Convolution, ReLU, max-pooling, twice; then fully connected, ReLU, fully connected.

    In: float `[n, C, H, W]`, any C, H and W at least 4. Out: `[n, classes]`, before the softmax.

    Raises:
        ConfigError: samples are not images, or are too small.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ConfigError(f"cnn needs images of shape (C, H, W), not samples of shape {shape}; try mlp")
        channels, height, width = shape
        if height < 4 or width < 4:
            raise ConfigError(f"cnn halves an image twice and needs at least 4x4 pixels, not {width}x{height}")
        self.convolution1 = nn.Conv2d(channels, 32, kernel_size=3, padding=1)
        self.convolution2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), 128)
        self.output = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Forward propagation."""
        # ReLU is monotone: max-pooling first gives the same numbers and gradients, with a quarter of the work in ReLU.
        x = relu(max_pool2d(self.convolution1(x), 2))  # [n, 32, H/2, W/2]
        x = relu(max_pool2d(self.convolution2(x), 2))  # [n, 64, H/4, W/4]
        x = relu(self.hidden(x.flatten(1)))  # [n, 128]
        y: Tensor = self.output(x)
        return y
