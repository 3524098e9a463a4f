"""Networks of fully connected layers, for samples of any shape."""

import math

from torch import Tensor, nn
from torch.nn.functional import relu

__all__ = ["MLP", "Logistic"]


class MLP(nn.Module):
    """Two hidden layers of 256 units with ReLU. In: float `[n, ...]`. Out: `[n, classes]`, before the softmax."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(math.prod(shape), 256)
        self.hidden2 = nn.Linear(256, 256)
        self.output = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Forward propagation."""
        x = relu(self.hidden1(x.flatten(1)))
        x = relu(self.hidden2(x))
        y: Tensor = self.output(x)
        return y


class Logistic(nn.Module):
    """Logistic regression: one linear layer. In: float `[n, ...]`. Out: `[n, classes]`, before the softmax."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(math.prod(shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Forward propagation."""
        y: Tensor = self.output(x.flatten(1))
        return y
