"""Consensus ADMM as a for-loop: the paper and nothing else. `trainpool.strategies.ADMM` gives the same numbers.

Boyd, Parikh, Chu, Peleato, Eckstein: "Distributed Optimization and Statistical Learning via the Alternating Direction
Method of Multipliers", Foundations and Trends in Machine Learning 3(1), 2011, sections 3.4 and 7.1; f_i is N·n_i/n
times the mean loss of shard i, its argmin is approximated by gradient steps that start at z.
"""

import numpy as np
from sklearn.datasets import load_digits

Shard = tuple[np.ndarray, np.ndarray]  # x [n, features], y [n]: labels


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy of a linear classifier, `[classes, features]`."""
    scores = x @ w.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y)


def train(
    z: np.ndarray, shards: list[Shard], rate: float, rho: float, alpha: float, l2: float, rounds: int, steps: int
) -> np.ndarray:
    """`rounds` of full-batch `steps` on each shard, over-relaxation `alpha`, weight decay `l2`; returns z."""
    N, n = len(shards), sum(len(y) for _, y in shards)
    u = [np.zeros_like(z) for _ in shards]
    for _ in range(rounds):
        relaxed = []
        for (x, y), u_i in zip(shards, u, strict=True):
            rho_i = rho * n / (N * len(y))  # minimising f_i + ρ/2‖·‖² and its mean loss + ρ_i/2‖·‖² is the same
            x_i = z.copy()
            for _ in range(steps):
                x_i -= rate * (gradient(x_i, x, y) + rho_i * (x_i - z + u_i))
            relaxed.append(alpha * x_i + (1 - alpha) * z)
        mean = sum(r + u_i for r, u_i in zip(relaxed, u, strict=True)) / N
        z = rho / (rho + l2) * mean
        u = [u_i + r - z for r, u_i in zip(relaxed, u, strict=True)]
    return z


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = np.column_stack([x / 16, np.ones(len(x))])
    order = np.argsort(y[:1500], kind="stable")  # each shard has labels of its own: averages drift, prices do not
    shards = [(x[rows], y[rows]) for rows in np.array_split(order, 4)]
    z = train(np.zeros((10, x.shape[1])), shards, rate=0.2, rho=0.05, alpha=1.5, l2=1e-4, rounds=60, steps=20)
    print(f"test accuracy {((x[1500:] @ z.T).argmax(axis=1) == y[1500:]).mean():.3f}")


if __name__ == "__main__":
    main()
