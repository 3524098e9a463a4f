"""Two convex problems with known answers, as kernels in plain NumPy: a whole run of one takes milliseconds."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from trainpool import rng
from trainpool.kernels.protocol import Arrays, Calibration, Evaluation, KernelError
from trainpool.messages import Recipe, Report, ShardId, Task
from trainpool.vector import Layout, Vector

__all__ = ["Logistic", "Quadratic"]

Gradient = Callable[[Vector, Vector, Vector], tuple[float, Vector]]
"""(w, x, y) to the batch's mean loss and its gradient."""


class Quadratic:
    """Linear least squares: mean of ½(x·w - y)² over samples `x` `[features]`, cut into shards of given sizes.

    `data` holds each shard's arrays, `optimum` the w of the smallest `objective`, in closed form. Shards differ: each
    has its own scale of features, so that a method which weighs them wrongly ends elsewhere.
    """

    def __init__(self, sizes: Sequence[int] = (24, 40, 32, 56), features: int = 6, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        truth = generator.normal(size=features)
        self.layout = Layout.of({"w": ((features,), "parameter")})
        self.data: dict[ShardId, Arrays] = {}
        for number, size in enumerate(sizes):
            x = generator.normal(size=(size, features)) * (0.7 + 0.6 * number / len(sizes))
            y = x @ truth + generator.normal(size=size) * 0.3 + 0.2 * number
            self.data[shard_id("quadratic", seed, number)] = {"x": x, "y": y}
        self.x, self.y = joined(self.data)
        self.optimum: Vector = np.linalg.lstsq(self.x, self.y, rcond=None)[0]

    @property
    def sizes(self) -> dict[ShardId, int]:
        """Samples of each shard, as `Plan.of` takes them."""
        return {shard: len(part["y"]) for shard, part in self.data.items()}

    def gradient(self, w: Vector, x: Vector, y: Vector) -> tuple[float, Vector]:
        """The mean loss of samples and its gradient."""
        residual = x @ w - y
        return float(residual @ residual) / (2 * len(y)), residual @ x / len(y)

    def objective(self, w: Vector) -> float:
        """The mean loss over all shards, in float64."""
        return self.gradient(w.astype(np.float64), self.x, self.y)[0]

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        """Train; see `Kernel.run`."""
        return descend(self.gradient, task, vector, anchor, shard, out)

    def recalibrate(self, vector: Vector, shards: Callable[[ShardId], Arrays], calibration: Calibration) -> Vector:
        """There are no buffers; see `Kernel.recalibrate`."""
        return vector[self.layout.trainable :]

    def evaluate(self, vector: Vector, data: Arrays) -> Evaluation:
        """Measure; see `Kernel.evaluate`."""
        loss, _ = self.gradient(vector, np.asarray(data["x"], vector.dtype), np.asarray(data["y"], vector.dtype))
        return Evaluation(loss, None, len(data["y"]))


class Logistic:
    """Logistic regression: mean of log(1 + exp(-y x·w)) + (`l2`/2)‖w‖² with labels `y` of -1 and 1.

    `data` holds each shard's arrays, `optimum` the w of the smallest `objective`, by Newton's method. The share of
    each label differs from shard to shard.
    """

    def __init__(
        self, sizes: Sequence[int] = (40, 56, 48, 64), features: int = 5, l2: float = 0.02, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        truth = generator.normal(size=features) * 1.5
        self.layout = Layout.of({"w": ((features,), "parameter")})
        self.l2 = l2
        self.data: dict[ShardId, Arrays] = {}
        for number, size in enumerate(sizes):
            x = generator.normal(size=(size, features)) + 0.3 * (number - len(sizes) / 2)
            y = np.where(generator.random(size) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)
            self.data[shard_id("logistic", seed, number)] = {"x": x, "y": y}
        self.x, self.y = joined(self.data)
        self.optimum: Vector = self.solve()

    @property
    def sizes(self) -> dict[ShardId, int]:
        """Samples of each shard, as `Plan.of` takes them."""
        return {shard: len(part["y"]) for shard, part in self.data.items()}

    def gradient(self, w: Vector, x: Vector, y: Vector) -> tuple[float, Vector]:
        """The mean loss of samples and its gradient."""
        margin = y * (x @ w)
        slope = -y / (1 + np.exp(margin))
        loss = float(np.logaddexp(0, -margin).mean()) + self.l2 / 2 * float(w @ w)
        return loss, slope @ x / len(y) + w * w.dtype.type(self.l2)

    def objective(self, w: Vector) -> float:
        """The mean loss over all shards, in float64."""
        return self.gradient(w.astype(np.float64), self.x, self.y)[0]

    def solve(self) -> Vector:
        """The optimum, by Newton's method."""
        w = np.zeros(self.layout.size)
        for _ in range(30):
            p = 1 / (1 + np.exp(-self.x @ w))
            hessian = (self.x * (p * (1 - p))[:, None]).T @ self.x / len(self.y) + self.l2 * np.eye(w.size)
            w -= np.linalg.solve(hessian, self.gradient(w, self.x, self.y)[1])
        return w

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        """Train; see `Kernel.run`."""
        return descend(self.gradient, task, vector, anchor, shard, out)

    def recalibrate(self, vector: Vector, shards: Callable[[ShardId], Arrays], calibration: Calibration) -> Vector:
        """There are no buffers; see `Kernel.recalibrate`."""
        return vector[self.layout.trainable :]

    def evaluate(self, vector: Vector, data: Arrays) -> Evaluation:
        """Measure; see `Kernel.evaluate`."""
        x, y = np.asarray(data["x"], vector.dtype), np.asarray(data["y"], vector.dtype)
        loss, _ = self.gradient(vector, x, y)
        return Evaluation(loss, float((np.sign(x @ vector) == y).mean()), len(y))


def descend(
    gradient: Gradient, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector
) -> Report:
    """A task by (momentum) SGD, in the vector's own type, with the batches, rates and anchor that the task names."""
    recipe: Recipe = task.recipe
    if recipe.optimizer != "sgd":
        raise KernelError(f"this kernel has no {recipe.optimizer}; use sgd")
    number = vector.dtype.type
    x, y = np.asarray(shard["x"], vector.dtype), np.asarray(shard["y"], vector.dtype)
    w, velocity, total = vector.copy(), np.zeros_like(vector), 0.0
    for step, rows in enumerate(rng.batches(task.seed, len(y), task.offset, task.steps, task.batch)):
        loss, g = gradient(w, x[rows], y[rows])
        total += loss
        if recipe.clip_norm:
            g = g * number(min(1.0, recipe.clip_norm / (float(np.linalg.norm(g)) + 1e-6)))
        if task.rho:
            g = g + number(task.rho) * (w - (vector if anchor is None else anchor))
        g = g + number(recipe.weight_decay) * w
        velocity = number(recipe.momentum) * velocity + g
        if recipe.nesterov:
            g = g + number(recipe.momentum) * velocity
        elif recipe.momentum:
            g = velocity
        w = w - number(recipe.rate(task.progress + step * task.pace)) * g
    if not np.isfinite(total):
        raise KernelError("the loss is not finite: lower the learning rate")
    np.subtract(vector, w, out=out)
    samples = task.steps * task.batch
    return Report(task=task.id, steps=task.steps, samples=samples, loss=total / task.steps, seconds=0.0)


def joined(data: dict[ShardId, Arrays]) -> tuple[Vector, Vector]:
    """All shards' samples."""
    return np.concatenate([part["x"] for part in data.values()]), np.concatenate([part["y"] for part in data.values()])


def shard_id(problem: str, seed: int, number: int) -> ShardId:
    """A name in the form that shards have."""
    return hashlib.sha256(f"{problem} {seed} {number}".encode()).hexdigest()
