"""Consensus ADMM against known optima and identities, with exact local solves by a small least-squares kernel.

The strategy works in units of the mean loss. Boyd's sums of losses, with N shards and n samples, translate as
ρ_mean = ρ_boyd·N/n and λ_mean = λ_boyd/n.
"""

import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs
from sklearn.linear_model import Lasso

from reference import difference
from trainpool.coordinator import Coordinator
from trainpool.kernels.protocol import Arrays
from trainpool.messages import Recipe, Report, Task, Update
from trainpool.strategies import ADMM, ParallelSGD, Plan
from trainpool.strategies.admm import State
from trainpool.strategies.protocol import Assignment, ShardPlan
from trainpool.testing import InProcessPool, Quadratic, simulate
from trainpool.vector import Layout, Vector

LONG = 20_000
SAMPLES, FEATURES = 600, 200


@dataclass(frozen=True)
class LeastSquares:
    """Solves argmin of mean ½(a·x - b)² + (ρ/2)‖x - anchor‖² on a shard exactly."""

    parts: dict[str, tuple[Vector, Vector]]

    @classmethod
    def of(cls, a: Vector, b: Vector, sizes: list[int]) -> "LeastSquares":
        """The rows of a problem, cut into shards of those sizes."""
        assert sum(sizes) == len(b)
        ends = list(itertools.accumulate(sizes))
        ids = [hashlib.sha256(bytes([number])).hexdigest() for number in range(len(sizes))]
        slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        return cls({i: (a[rows], b[rows]) for i, rows in zip(ids, slices, strict=True)})

    def plan(self, steps: int = LONG) -> Plan:
        """A plan that allows that many rounds."""
        parts = [ShardPlan(i, len(b), len(b), steps) for i, (_, b) in self.parts.items()]
        return Plan(tuple(parts), Recipe(batch_size=0))

    def factors(self, rho: dict[str, float]) -> dict[str, Vector]:
        """The inverse of each shard's system."""
        eye = np.eye(next(iter(self.parts.values()))[0].shape[1])
        return {i: np.linalg.inv(a.T @ a / len(b) + rho[i] * eye) for i, (a, b) in self.parts.items()}

    def solve(self, factors: dict[str, Vector], shard: str, task: Assignment) -> Vector:
        """The exact solution of a task."""
        a, b = self.parts[shard]
        assert task.anchor is not None
        return factors[shard] @ (a.T @ b / len(b) + task.rho * task.anchor)

    def rounds(self, admm: ADMM, state: State, most: int = LONG) -> State:
        """Rounds until the strategy wants no more, or `most`."""
        rho, factors = 0.0, {}
        for _ in range(most):
            if not admm.wanted(state):
                break
            if state.rho != rho:
                rho = state.rho
                factors = self.factors({i: admm.assign(state, i).rho for i in self.parts})
            for shard in [*admm.wanted(state)]:
                task = admm.assign(state, shard)
                delta = task.parameters - self.solve(factors, shard, task)
                state = admm.merge(state, shard, Update(delta, 1, 1, 0.0, state.version, 0, 1.0))
        return state

    def run(self, admm: ADMM, most: int = LONG) -> State:
        """Rounds from zero."""
        size = next(iter(self.parts.values()))[0].shape[1]
        return self.rounds(admm, admm.init(np.zeros(size), self.plan()), most)


@dataclass(frozen=True)
class Exact:
    """The same as a kernel: its tasks end at the shard's exact solution, whatever their steps."""

    layout: Layout

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        """Solve; see `Kernel.run`."""
        assert anchor is not None
        a, b = shard["x"], shard["y"]
        system = a.T @ a / len(b) + task.rho * np.eye(vector.size)
        out[:] = vector - np.linalg.solve(system, a.T @ b / len(b) + task.rho * anchor)
        return Report(task=task.id, steps=task.steps, samples=task.steps * task.batch, loss=0.0, seconds=0.0)


def coordinated(problem: LeastSquares, admm: ADMM, speeds: list[float]) -> Coordinator:
    """A whole run from zero, a step a round, by workers of those speeds."""
    data = {shard: {"x": a, "y": b} for shard, (a, b) in problem.parts.items()}
    size = next(iter(data.values()))["x"].shape[1]
    layout = Layout.of({"x": ((size,), "parameter")})
    coordinator = Coordinator(admm, problem.plan(admm.rounds), layout, np.zeros(size))
    assert simulate(coordinator, InProcessPool(Exact(layout), data.__getitem__, speeds=speeds)) == "finished"
    return coordinator


def cut(shards: int, total: int = SAMPLES) -> list[int]:
    """Unequal sizes that add up."""
    weights = np.linspace(1, 3, shards)
    sizes = np.maximum(1, (weights / weights.sum() * total).astype(int))
    sizes[-1] += total - sizes.sum()
    return sizes.tolist()


def problem(samples: int = SAMPLES, features: int = FEATURES, seed: int = 0) -> tuple[Vector, Vector]:
    """Boyd's kind of example: a Gaussian matrix with columns of norm 1, a sparse truth, little noise."""
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(samples, features))
    a /= np.linalg.norm(a, axis=0)
    truth = generator.normal(size=features) * (generator.random(features) < 0.1)
    return a, a @ truth + generator.normal(size=samples) * np.sqrt(0.001)


A, B = problem()
PENALTY = 0.1 * float(np.abs(A.T @ B).max())
"""Boyd's λ, 0.1 λ_max."""


def lasso(z: Vector) -> float:
    """Boyd's objective, ½‖Ax - b‖² + λ‖x‖₁."""
    return float(((A @ z - B) ** 2).sum() / 2 + PENALTY * np.abs(z).sum())


def boyd(shards: int, rho: float, **settings: Any) -> ADMM:
    """ADMM for the lasso with ρ in Boyd's units, without over-relaxation."""
    return ADMM(rho=rho * shards / SAMPLES, l1=PENALTY / SAMPLES, relaxation=1.0, rounds=LONG, **settings)


@pytest.fixture(scope="module")
def reference() -> Vector:
    """scikit-learn's solution by coordinate descent."""
    model = Lasso(alpha=PENALTY / SAMPLES, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return model.fit(A, B).coef_


TIGHT = {"stop": True, "absolute_tolerance": 1e-14, "relative_tolerance": 1e-11}
RHOS = (0.1, 1.0, 10.0)
CELLS = {  # (shards, ρ): rounds at Boyd's tolerances, rounds at 1e-11
    (1, 0.1): (33, 480),
    (1, 1.0): (9, 59),
    (1, 10.0): (68, 346),
    (4, 0.1): (16, 265),
    (4, 1.0): (25, 135),
    (4, 10.0): (235, 1322),
    (16, 0.1): (18, 163),
    (16, 1.0): (78, 516),
    (16, 10.0): (765, 5117),
}
"""Measured here; a change of more than a round is a change of the method."""


@pytest.mark.parametrize(("shards", "rho"), CELLS)
def test_the_lasso_ends_at_scikit_learns_solution_for_every_rho_and_cutting_3e_9(
    shards: int, rho: float, reference: Vector
) -> None:
    kernel = LeastSquares.of(A, B, cut(shards))
    end = kernel.run(boyd(shards, rho, **TIGHT))
    assert np.linalg.norm(end.parameters - reference) <= 3e-9
    assert lasso(end.parameters) == pytest.approx(lasso(reference), rel=1e-10)
    usual = kernel.run(boyd(shards, rho, stop=True))
    assert 0 <= lasso(usual.parameters) / lasso(reference) - 1 <= 5e-4
    assert usual.version == pytest.approx(CELLS[shards, rho][0], abs=1)
    assert end.version == pytest.approx(CELLS[shards, rho][1], abs=1)


@pytest.mark.parametrize(("shards", "rho"), [(1, 1.0), (4, 1.0), (16, 0.1)])
def test_the_lasso_by_the_coordinator_on_unequal_shards_and_workers_stops_where_it_should(
    shards: int, rho: float, reference: Vector
) -> None:
    end = coordinated(LeastSquares.of(A, B, cut(shards)), boyd(shards, rho, stop=True), [1.0, 2.5, 6.0])
    assert end.state.version == pytest.approx(CELLS[shards, rho][0], abs=1)
    assert end.memory.updates == shards * end.state.version
    assert 0 <= lasso(end.parameters) / lasso(reference) - 1 <= 5e-4


def test_rounds_vary_by_more_than_ten_times_and_the_best_rho_falls_as_shards_grow() -> None:
    rounds = {cell: tight for cell, (_, tight) in CELLS.items()}
    assert max(rounds.values()) > 10 * min(rounds.values())
    best = {n: min((tight, rho) for (shards, rho), tight in rounds.items() if shards == n)[1] for n in (1, 4, 16)}
    assert best[1] == best[4] == 1.0
    assert best[16] == 0.1


BALANCED = {0.001: 29, 0.01: 25, 1.0: 40, 100.0: 67}
"""Rounds of 16 shards from each first ρ, at Boyd's tolerances."""


@pytest.mark.parametrize(("rho", "rounds"), BALANCED.items())
def test_residual_balancing_makes_the_start_of_rho_matter_little(rho: float, rounds: int, reference: Vector) -> None:
    end = LeastSquares.of(A, B, cut(16)).run(boyd(16, rho, balance_rounds=100, stop=True))
    assert 0 <= lasso(end.parameters) / lasso(reference) - 1 <= 5e-4
    assert end.version == pytest.approx(rounds, abs=1)
    assert 0.5 <= end.rho * SAMPLES / 16 <= 0.8


def test_without_balancing_a_bad_start_of_rho_is_still_far_when_the_balanced_run_has_ended() -> None:
    assert max(BALANCED.values()) < 3 * min(BALANCED.values())  # over five decades of ρ
    end = LeastSquares.of(A, B, cut(16)).run(boyd(16, 100.0, stop=True), 400)
    assert end.residuals is not None
    assert end.residuals.dual > 10 * end.residuals.dual_tolerance


# Least squares: identities to 1e-12

SMALL = problem(120, 8, seed=1)
SIZES = [9, 40, 23, 13, 35]
SQUARE = LeastSquares.of(*SMALL, SIZES)
POOLED: Vector = np.linalg.lstsq(*SMALL, rcond=None)[0]


def weight(shard: str) -> float:
    """N·n_i/n, of the shard's mean loss in f_i."""
    return len(SIZES) * len(SQUARE.parts[shard][1]) / sum(SIZES)


def slope(shard: str, z: Vector) -> Vector:
    """∇f_i(z)."""
    a, b = SQUARE.parts[shard]
    return weight(shard) * a.T @ (a @ z - b) / len(b)


@pytest.mark.parametrize("relaxation", [1.0, 1.5])
@pytest.mark.parametrize("rho", [0.003, 0.01, 0.05])
def test_least_squares_on_unequal_shards_ends_at_the_pooled_solution(rho: float, relaxation: float) -> None:
    end = SQUARE.run(ADMM(rho=rho, relaxation=relaxation, rounds=LONG), 1500)
    assert np.abs(end.parameters - POOLED).max() < 1e-12


@pytest.mark.parametrize("relaxation", [1.0, 1.5])
def test_by_the_coordinator_too_and_with_other_weights_elsewhere(relaxation: float) -> None:
    end = coordinated(SQUARE, ADMM(rho=0.01, relaxation=relaxation, rounds=400), [1.0, 2.5, 6.0])
    assert difference(end.parameters, POOLED) < 1e-12
    for shard, u in end.state.duals.items():
        assert difference(end.state.rho * u, -slope(shard, POOLED)) < 1e-12
    halves = {shard: (a[::2], b[::2]) for shard, (a, b) in SQUARE.parts.items()}
    other = coordinated(LeastSquares(halves), ADMM(rho=0.01, relaxation=relaxation, rounds=400), [1.0, 2.5, 6.0])
    assert difference(other.parameters, POOLED) > 1e-3


def test_the_same_strength_of_pull_on_every_shards_mean_loss_ends_elsewhere() -> None:
    class Unweighted(LeastSquares):
        def solve(self, factors: dict[str, Vector], shard: str, task: Assignment) -> Vector:
            return super().solve(factors, shard, msgspec.structs.replace(task, rho=0.01))

        def factors(self, rho: dict[str, float]) -> dict[str, Vector]:
            return super().factors(dict.fromkeys(rho, 0.01))

    end = Unweighted(SQUARE.parts).run(ADMM(rho=0.01, rounds=LONG), 1500)
    assert np.abs(end.parameters - POOLED).max() > 1e-3


def test_ridge_and_weight_decay_in_g_are_one() -> None:
    a, b = SMALL
    l2 = 0.02
    end = SQUARE.run(ADMM(rho=0.01, l2=l2, rounds=LONG), 1500)
    ridge = np.linalg.solve(a.T @ a / len(b) + l2 * np.eye(8), a.T @ b / len(b))
    assert np.abs(end.parameters - ridge).max() < 1e-12


@pytest.mark.parametrize("relaxation", [1.0, 1.6])
def test_the_duals_sum_to_zero_after_one_round_from_any_start(relaxation: float) -> None:
    admm, generator = ADMM(rho=0.01, relaxation=relaxation, rounds=LONG), np.random.default_rng(0)
    state = admm.init(generator.normal(size=8), SQUARE.plan())
    state = structs.replace(state, duals={shard: generator.normal(size=8) for shard in state.duals})
    for _ in range(3):
        old = state.parameters.copy()
        state = SQUARE.rounds(admm, state, 1)
        assert np.abs(sum(state.duals.values())).max() < 1e-13
        relaxed = [relaxation * x + (1 - relaxation) * old for x in state.solutions.values()]
        if state.version > 1:  # the first round's mean still has the given duals in it
            assert np.abs(np.mean(relaxed, axis=0) - state.parameters).max() < 1e-13


def test_at_the_optimum_the_duals_are_minus_the_slopes() -> None:
    end = SQUARE.run(ADMM(rho=0.01, rounds=LONG), 1500)
    for shard, u in end.duals.items():
        assert np.abs(end.rho * u + slope(shard, end.parameters)).max() < 1e-12
        assert np.abs(end.solutions[shard] - end.parameters).max() < 1e-12


def test_one_shards_first_solution_is_the_proximal_point_and_the_last_the_minimum() -> None:
    a, b = SMALL
    one = LeastSquares.of(a, b, [len(b)])
    admm = ADMM(rho=0.01, relaxation=1.0, rounds=LONG)
    start = np.ones(8)
    state = one.rounds(admm, admm.init(start, one.plan()), 1)
    prox = np.linalg.solve(a.T @ a / len(b) + 0.01 * np.eye(8), a.T @ b / len(b) + 0.01 * start)
    assert np.abs(state.parameters - prox).max() < 1e-12
    assert np.abs(one.rounds(admm, state, 1500).parameters - POOLED).max() < 1e-12


@pytest.mark.parametrize(("primal", "dual", "factor"), [(11.0, 1.0, 2.0), (1.0, 11.0, 0.5), (9.0, 1.0, 1.0)])
def test_when_rho_changes_the_unscaled_duals_stay(primal: float, dual: float, factor: float) -> None:
    admm = ADMM(rho=0.01, balance_rounds=5, rounds=LONG)
    state = SQUARE.run(replace(admm, balance_rounds=0), 3)
    assert state.residuals is not None
    state = structs.replace(state, residuals=replace(state.residuals, primal=primal, dual=dual))
    before = {shard: state.rho * u.copy() for shard, u in state.duals.items()}
    after = admm.balance(state)
    assert after.rho == state.rho * factor
    for shard, u in after.duals.items():
        np.testing.assert_array_equal(after.rho * u, before[shard])


# Gradient steps instead of exact solutions

RATE, EQUAL = 0.1, (32, 32, 32)
FULL = Recipe(learning_rate=RATE, batch_size=0, schedule="constant")


def gradient_round(admm: Any, quadratic: Quadratic, state: Any, steps: int, recipe: Recipe = FULL) -> Any:
    """A round of `steps` full-batch steps on every shard."""
    for number, shard in enumerate([*admm.wanted(state)]):
        assignment = admm.assign(state, shard)
        samples = quadratic.sizes[shard]
        task = Task(
            id=number,
            version=state.version,
            shard=shard,
            recipe=recipe,
            seed=0,
            offset=0,
            steps=steps,
            batch=samples,
            anchored=assignment.anchor is not None,
            rho=assignment.rho,
        )
        delta = np.empty(6)
        data: Arrays = quadratic.data[shard]
        quadratic.run(task, assignment.parameters.copy(), assignment.anchor, data, delta)
        state = admm.merge(state, shard, Update(delta, steps, samples * steps, 0.0, state.version, 0, RATE))
    return state


def fedprox(quadratic: Quadratic, w: Vector, mu: float, steps: int) -> Vector:
    """A round of FedProx: local steps on f_i + (μ/2)‖x - w‖², then the mean."""
    ends = []
    for part in quadratic.data.values():
        x = w.copy()
        for _ in range(steps):
            x = x - RATE * (quadratic.gradient(x, part["x"], part["y"])[1] + mu * (x - w))
        ends.append(x)
    return np.mean(ends, axis=0)


def first_round(rho: float, steps: int) -> Vector:
    """ADMM's consensus after one round from zero duals."""
    quadratic = Quadratic(EQUAL)
    admm = ADMM(rho=rho, relaxation=1.0, rounds=3)
    state = admm.init(np.ones(6), Plan.of(quadratic.sizes, FULL, 3 * steps))
    return gradient_round(admm, quadratic, state, steps).parameters


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("rho", [0.05, 0.7])
def test_gradient_steps_with_zero_duals_are_fedprox(rho: float, steps: int) -> None:
    assert np.abs(first_round(rho, steps) - fedprox(Quadratic(EQUAL), np.ones(6), rho, steps)).max() < 1e-13


def test_one_step_of_fedprox_does_not_depend_on_mu_and_five_steps_differ() -> None:
    assert np.abs(first_round(0.05, 1) - first_round(0.7, 1)).max() < 1e-13
    assert np.abs(first_round(0.05, 5) - first_round(0.7, 5)).max() > 1e-2


def test_with_a_vanishing_rho_and_no_relaxation_rounds_are_local_sgd_and_with_a_large_one_differ() -> None:
    quadratic, ends = Quadratic(EQUAL), []
    plan = Plan.of(quadratic.sizes, FULL, 15)
    for strategy in (ADMM(rho=1e-14, relaxation=1.0, rounds=3), ADMM(rho=0.5, rounds=3), ParallelSGD(rounds=3)):
        state = strategy.init(np.ones(6), plan)
        for _ in range(3):
            state = gradient_round(strategy, quadratic, state, 5)
        ends.append(state.parameters)
    assert np.abs(ends[0] - ends[2]).max() < 1e-12
    assert np.abs(ends[1] - ends[2]).max() > 1e-2


@pytest.mark.parametrize(("steps", "gap"), [(1, 1e-2), (5, 1e-7), (50, 1e-12)])
def test_inexact_solves_still_end_at_the_optimum(steps: int, gap: float) -> None:
    quadratic = Quadratic()
    admm = ADMM(rho=1.0, relaxation=1.0, rounds=60)
    state = admm.init(np.zeros(6), Plan.of(quadratic.sizes, FULL, 60))
    for _ in range(60):
        state = gradient_round(admm, quadratic, state, steps)
    assert np.abs(state.parameters - quadratic.optimum).max() < gap


def test_a_report_leaves_out_a_ratio_to_no_tolerance() -> None:
    strategy = ADMM(absolute_tolerance=0.0, rounds=2)
    parameters = np.zeros(3, np.float64)
    plan = Plan.of({"a": 8}, Recipe(batch_size=8), 2)
    state = strategy.init(parameters, plan)
    state = strategy.merge(state, "a", Update(np.ones(3), 1, 8, 0.0, 0, 0, 0.1))
    assert all(np.isfinite(number) for number in strategy.report(state).values())
    assert "dual_ratio" not in strategy.report(state)
