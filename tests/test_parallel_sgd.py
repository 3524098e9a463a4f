"""SimuParallelSGD (Zinkevich et al. 2010): what the published theorems say of one average at the end."""

import numpy as np
import pytest

from trainpool.coordinator import Coordinator
from trainpool.messages import Recipe, Task
from trainpool.strategies import ParallelSGD, Plan
from trainpool.testing import InProcessPool, Quadratic, simulate
from trainpool.testing.problems import shard_id
from trainpool.vector import Vector

SEEDS, FEATURES, PENALTY, NOISE = 30, 20, 0.05, 1.0
MACHINES = (1, 4, 16)
CONTRACTION = 1 / FEATURES + PENALTY
"""The smallest curvature: features are uniform on the unit sphere, so that E x xᵀ = I/FEATURES."""
TRUTH = np.random.default_rng(0).normal(size=FEATURES)
OPTIMUM = TRUTH / FEATURES / CONTRACTION
"""Of the regularised problem."""
KERNEL = Quadratic(features=FEATURES)


def average(machines: int, rate: float, seed: int) -> Vector:
    """The answer of a run that passes once over fresh examples, long enough to forget where it began."""
    generator, steps, data = np.random.default_rng([seed, machines]), round(6 / (rate * CONTRACTION)), {}
    for number in range(machines):
        x = generator.normal(size=(steps, FEATURES))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        data[shard_id("fresh", seed, number)] = {"x": x, "y": x @ TRUTH + NOISE * generator.normal(size=steps)}
    recipe = Recipe(batch_size=1, learning_rate=rate, weight_decay=PENALTY, schedule="constant")
    plan = Plan.of(dict.fromkeys(data, steps), recipe, 1)
    coordinator = Coordinator(ParallelSGD(rounds=1), plan, KERNEL.layout, np.zeros(FEATURES), seed=seed)
    assert simulate(coordinator, InProcessPool(KERNEL, data.__getitem__, workers=machines)) == "finished"
    assert coordinator.memory.updates == machines
    return coordinator.parameters


@pytest.fixture(scope="module")
def errors() -> dict[tuple[float, int], float]:
    """E‖v - w*‖² by learning rate and number of machines."""
    return {
        (rate, k): float(np.mean([((average(k, rate, seed) - OPTIMUM) ** 2).sum() for seed in range(SEEDS)]))
        for rate in (0.5, 0.25)
        for k in MACHINES
    }


@pytest.mark.parametrize("rate", [0.5, 0.25])
def test_the_error_times_the_number_of_machines_is_constant_within_25_percent(
    rate: float, errors: dict[tuple[float, int], float]
) -> None:
    scaled = [errors[rate, k] * k for k in MACHINES]
    assert np.abs(np.array(scaled) / np.mean(scaled) - 1).max() < 0.25
    assert errors[rate, 1] > 10 * errors[rate, 16]


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
