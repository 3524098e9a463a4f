"""SimuParallelSGD (Zinkevich et al. 2010): what the published theorems say of one average at the end."""

import hashlib

import numpy as np
import pytest

from trainpool.messages import Recipe, Task, Update
from trainpool.strategies import ParallelSGD, Plan
from trainpool.strategies.protocol import ShardPlan
from trainpool.testing import Quadratic
from trainpool.vector import Vector

SEEDS, FEATURES, PENALTY, NOISE = 30, 20, 0.05, 1.0
MACHINES = (1, 4, 16, 64)


def chains(rate: float) -> tuple[Vector, Vector]:
    """The ends of independent SGD chains `[SEEDS, max(MACHINES), FEATURES]`, and the optimum they surround.

    Features are uniform on the unit sphere, so that E x xᵀ = I/FEATURES and the regularised optimum is known.
    """
    generator = np.random.default_rng(0)
    truth = generator.normal(size=FEATURES)
    optimum = truth / FEATURES / (1 / FEATURES + PENALTY)
    w = np.zeros((SEEDS, max(MACHINES), FEATURES))
    for _ in range(round(6 / (rate * (1 / FEATURES + PENALTY)))):
        x = generator.normal(size=w.shape)
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        y = x @ truth + NOISE * generator.normal(size=w.shape[:-1])
        residual = (x * w).sum(-1) - y
        w -= rate * (residual[..., None] * x + PENALTY * w)
    return w, optimum


def average(ends: Vector, rate: float) -> Vector:
    """The strategy's answer to the ends of k chains that began at zero, `[k, FEATURES]`."""
    ids = [hashlib.sha256(bytes([number])).hexdigest() for number in range(len(ends))]
    recipe = Recipe(batch_size=1, learning_rate=rate, schedule="constant")
    strategy = ParallelSGD(rounds=1)
    state = strategy.init(np.zeros(FEATURES), Plan(tuple(ShardPlan(i, 1, 1, 100) for i in ids), recipe))
    for shard, end in zip(ids, ends, strict=True):
        start = strategy.assign(state, shard).parameters
        state = strategy.merge(state, shard, Update(start - end, 100, 100, 0.0, 0, 0, rate))
    assert not strategy.wanted(state)
    return state.parameters


@pytest.fixture(scope="module")
def errors() -> dict[tuple[float, int], float]:
    """E‖v - w*‖² by learning rate and number of machines."""
    found = {}
    for rate in (0.5, 0.25):
        ends, optimum = chains(rate)
        for k in MACHINES:
            averages = [average(of_seed[:k], rate) for of_seed in ends]
            found[rate, k] = float(np.mean([((v - optimum) ** 2).sum() for v in averages]))
    return found


@pytest.mark.parametrize("rate", [0.5, 0.25])
def test_the_error_times_the_number_of_machines_is_constant_within_25_percent(
    rate: float, errors: dict[tuple[float, int], float]
) -> None:
    scaled = [errors[rate, k] * k for k in MACHINES]
    assert np.abs(np.array(scaled) / np.mean(scaled) - 1).max() < 0.25
    assert errors[rate, 1] > 40 * errors[rate, 64]


def test_the_error_is_proportional_to_the_learning_rate(errors: dict[tuple[float, int], float]) -> None:
    for k in MACHINES:
        assert 1.6 < errors[0.5, k] / errors[0.25, k] < 2.8


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_two_chains_fed_the_same_examples_approach_at_every_step(rate: float) -> None:
    problem = Quadratic()
    shard, data = next(iter(problem.data.items()))
    assert rate <= 1 / ((data["x"] ** 2).sum(1).max() + PENALTY)  # the theorem's condition
    recipe = Recipe(learning_rate=rate, batch_size=1, weight_decay=PENALTY, schedule="constant")
    generator = np.random.default_rng(0)
    chains = [generator.normal(size=6) * 3, generator.normal(size=6)]
    for step in range(200):
        task = Task(id=step, version=0, shard=shard, recipe=recipe, seed=1, offset=step, steps=1, batch=1)
        before = np.linalg.norm(chains[0] - chains[1])
        for w in chains:
            delta = np.empty(6)
            problem.run(task, w, None, data, delta)
            w -= delta
        assert np.linalg.norm(chains[0] - chains[1]) <= (1 - rate * PENALTY) * before * (1 + 1e-12)
