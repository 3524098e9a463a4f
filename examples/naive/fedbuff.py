"""FedBuff as a for-loop: the paper and nothing else. `trainpool.strategies.FedBuff` gives the same numbers.

Nguyen et al.: "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, algorithm 1, with the discount
1/√(1 + staleness).
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
    w: np.ndarray, shards: list[Shard], draw: Draw, pushes: Iterable[int], rate: float, steps: int, K: int, eta: float
) -> np.ndarray:
    """`pushes` names the worker (one a shard) of each push, in order; its next task begins with the w of that time."""
    version, buffer = 0, []
    fetched, batches = [(w, version) for _ in shards], [draw(i) for i in range(len(shards))]
    for i in pushes:
        (x, y), (start, begun) = shards[i], fetched[i]
        w_i = start.copy()
        for _ in range(steps):
            batch = next(batches[i])
            w_i -= rate * gradient(w_i, x[batch], y[batch])
        buffer.append((start - w_i) / np.sqrt(1 + version - begun))
        if len(buffer) == K:
            w, version, buffer = w - eta * sum(buffer) / K, version + 1, []
        fetched[i] = (w, version)
    return w - eta * sum(buffer) / len(buffer) if buffer else w


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = np.column_stack([x / 16, np.ones(len(x))])
    shards = [(x[i:1500:4], y[i:1500:4]) for i in range(4)]
    generator = np.random.default_rng(0)

    def draw(i: int) -> Iterator[np.ndarray]:
        while True:
            yield generator.integers(0, len(shards[i][1]), 16)

    pushes = generator.choice(4, 100, p=[0.1, 0.2, 0.3, 0.4])  # workers of unequal speed
    w = train(np.zeros((10, x.shape[1])), shards, draw, pushes, rate=0.2, steps=20, K=2, eta=1.0)
    print(f"test accuracy {((x[1500:] @ w.T).argmax(axis=1) == y[1500:]).mean():.3f}")


if __name__ == "__main__":
    main()
