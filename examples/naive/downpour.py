"""Downpour SGD as a for-loop: the paper and nothing else. `trainpool.strategies.Downpour` gives the same numbers.

Dean et al.: "Large Scale Distributed Deep Networks", NIPS 2012, section 4.1, in task form: a worker fetches, takes n
local steps, and pushes their accrued gradient; the server's Adagrad steps at each push.
"""

from collections.abc import Callable, Iterable, Iterator

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
    w: np.ndarray, shards: list[Shard], draw: Draw, pushes: Iterable[int], rate: float, gamma: float, n: int
) -> np.ndarray:
    """`pushes` names the worker (one a shard) of each push, in order."""
    w, G = w.copy(), np.zeros_like(w)
    fetched, batches = [w.copy() for _ in shards], [draw(i) for i in range(len(shards))]
    for i in pushes:
        (x, y), w_i, accrued = shards[i], fetched[i], np.zeros_like(w)
        for _ in range(n):
            batch = next(batches[i])
            g = gradient(w_i, x[batch], y[batch])
            accrued += g
            w_i -= rate * g
        G += accrued**2
        w -= gamma * accrued / (np.sqrt(G) + 1e-10)
        fetched[i] = w.copy()
    return w


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = np.column_stack([x / 16, np.ones(len(x))])
    shards, generator = [(x[i:1500:4], y[i:1500:4]) for i in range(4)], np.random.default_rng(0)

    def draw(i: int) -> Iterator[np.ndarray]:
        while True:
            yield generator.integers(0, len(shards[i][1]), 16)

    pushes = generator.choice(4, 400, p=[0.1, 0.2, 0.3, 0.4])  # workers of unequal speed
    w = train(np.zeros((10, x.shape[1])), shards, draw, pushes, rate=0.1, gamma=0.03, n=5)
    print(f"test accuracy {((x[1500:] @ w.T).argmax(axis=1) == y[1500:]).mean():.3f}")


if __name__ == "__main__":
    main()
