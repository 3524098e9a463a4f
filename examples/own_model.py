"""Your own network on your own arrays: handwritten digits (8x8 pixels) that come with scikit-learn.

python examples/own_model.py
trainpool train examples/own_model.py:experiment --strategy admm --workers 2
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import trainpool as tp


class Net(nn.Module):
    """Any module will do. Workers get a copy of it; it needs to know nothing about them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(16)  # its running mean and variance are merged too
        self.output = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.convolution(x)))  # [n, 16, 8, 8]
        x = nn.functional.max_pool2d(x, 2)  # [n, 16, 4, 4]
        return self.output(x.flatten(1))  # [n, 10]: before the softmax, as the cross-entropy wants it


def experiment() -> tp.Experiment:
    """What the command line calls. An `Experiment` at module level, not in a function, would do as well."""
    digits = load_digits()
    # Bytes would be divided by 255 on the way into the network. Floats stay as they are, so scale them here.
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # [1797, 1, 8, 8]
    y = torch.tensor(digits.target)  # integers are class labels; anything else is a regression target
    torch.manual_seed(0)  # the first parameters are yours: without a seed they differ from run to run
    return tp.Experiment(Net(), train=(x[:1437], y[:1437]), test=(x[1437:], y[1437:]), name="digits")


# The command line imports this file: train only where the file itself is run.
if __name__ == "__main__":
    mine = experiment()
    result = tp.train(
        mine,
        strategy=tp.ADMM(),  # or ParallelSGD, Downpour, Serial
        recipe=tp.Recipe(learning_rate=0.2, batch_size=32),  # what a worker does with a task
        pool=tp.LocalPool(workers=2, threads=1),
        epochs=10,
        evaluate_every=2,  # passes over the data between evaluations
    )
    # `result.model` is the same object as `mine.model`, now trained; without `out=` no files are kept.
    result.model.eval()
    x, y = mine.test
    with torch.inference_mode():
        right = result.model(x).argmax(1) == y
    print(f"test accuracy {right.float().mean():.3f}")
