"""DiLoCo as a for-loop: the paper and nothing else. `trainpool.strategies.DiLoCo` gives the same numbers.

Douillard et al.: "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, algorithm 1, with SGD as
the inner optimizer.
"""

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.datasets import load_digits

Shard = tuple[np.ndarray, np.ndarray]  # x [n, features], y [n]: labels
Draw = Callable[[int], Iterator[np.ndarray]]  # the rows of a shard's batches


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy of a linear classifier, `[classes, features]`."""
    scores = x @ w.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y)


def train(
    w: np.ndarray, shards: list[Shard], draw: Draw, rate: float, rounds: int, steps: int, eta: float, mu: float
) -> np.ndarray:
    """`rounds` times `steps` local steps on each shard, and an outer step with Nesterov momentum."""
    w, m = w.copy(), np.zeros_like(w)
    batches = [draw(i) for i in range(len(shards))]
    for _ in range(rounds):
        deltas = []
        for (x, y), rows in zip(shards, batches, strict=True):
            w_i = w.copy()
            for _ in range(steps):
                batch = next(rows)
                w_i -= rate * gradient(w_i, x[batch], y[batch])
            deltas.append(w - w_i)
        g = sum(deltas) / len(deltas)
        m = mu * m + g
        w = w - eta * (g + mu * m)
    return w


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = np.column_stack([x / 16, np.ones(len(x))])
    shards = [(x[i:1500:4], y[i:1500:4]) for i in range(4)]
    generator = np.random.default_rng(0)

    def draw(i: int) -> Iterator[np.ndarray]:
        while True:
            yield generator.integers(0, len(shards[i][1]), 16)

    w = train(np.zeros((10, x.shape[1])), shards, draw, rate=0.05, rounds=20, steps=20, eta=0.7, mu=0.9)
    print(f"test accuracy {((x[1500:] @ w.T).argmax(axis=1) == y[1500:]).mean():.3f}")


if __name__ == "__main__":
    main()
