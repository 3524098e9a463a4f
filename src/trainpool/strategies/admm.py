"""Consensus ADMM: agree on one model by passing prices.

Rule (scaled form), with x_i the solution on shard i, z the consensus, u_i the scaled dual ("price") of shard i:

    x_i ← argmin f_i(x) + (ρ/2)‖x - z + u_i‖²                     a task: SGD steps from z, anchored at z - u_i
    x̂_i ← α x_i + (1-α) z                                          over-relaxation
    z   ← argmin g(z) + (Nρ/2)‖z - mean(x̂_i + u_i)‖²              prox of g: shrinks for `l2`, soft-thresholds for `l1`
    u_i ← u_i + x̂_i - z

Reported each round: r = ‖(x_i - z)_i‖, s = R√N‖z - z_old‖, and Boyd's stopping rule (section 3.3.1)
r < √(pN) ε_abs + ε_rel max(‖x‖, √N‖z‖) and s < √(pN) ε_abs + ε_rel R‖u‖, with p parameters, n samples and R = ρ n/N,
which is Boyd's ρ (below). Residual balancing (section 3.4.1): ρ ← 2ρ if r > 10 s, ρ ← ρ/2 if s > 10 r, and
u ← u ρ_old/ρ_new since u is scaled by 1/ρ.

Citation: Boyd, S., Parikh, N., Chu, E., Peleato, B., Eckstein, J.: "Distributed Optimization and Statistical Learning
via the Alternating Direction Method of Multipliers", Foundations and Trends in Machine Learning 3(1), 2011, sections
3.3, 3.4, 7.1, 7.2.
Deviations and traps:
- Losses are means, so f_i = (N n_i/n)·(mean loss on shard i): Σ f_i is N times the mean loss of all samples, shards of
  any size get their due weight, and ρ, `l1`, `l2` are in units of the mean loss. A worker sees the mean loss alone, so
  its task carries ρ n/(N n_i). The average in z is never weighted: that would be wrong.
- Boyd's f_i are sums of losses, n/N times as large, and so are his ρ and s, but not r and ε_abs, with which his rules
  compare s: R puts it into his unit. In the unit of mean losses the rule would stop far from a lasso's optimum.
- The local solve is inexact: SGD steps from z. It needs learning rate·(L + ρ) < 2, L the loss's curvature.
- Put weight decay in g (`l2`), not in the recipe. Momentum starts anew each round, as it must when z has moved.
- Duals belong to shards, not to workers: whoever trains a shard continues its dual.
- Balancing stops after `balance_rounds`, which the convergence proof needs.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
import numpy as np
from msgspec import Meta, structs

from trainpool.messages import Count, NotNegative, Positive, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, check
from trainpool.vector import CHUNK, ROW, Vector, add_squares, rows, share

__all__ = ["ADMM"]


@dataclass(frozen=True)
class Residuals:
    """How far a round was from agreement and from rest, with the tolerances of Boyd's stopping rule."""

    primal: float
    dual: float
    primal_tolerance: float
    dual_tolerance: float

    @property
    def met(self) -> bool:
        """Whether both residuals are within their tolerances."""
        return self.primal < self.primal_tolerance and self.dual < self.dual_tolerance


class State(msgspec.Struct, frozen=True):
    """Everything that evolves."""

    plan: Plan
    parameters: Vector
    """z: [trainable]."""
    version: int
    """Rounds completed."""
    rounds: int
    rho: float
    duals: dict[ShardId, Vector]
    """u_i: [trainable] each."""
    solutions: dict[ShardId, Vector]
    """x_i: [trainable] each; of an earlier round where `missing`, otherwise of this one."""
    missing: dict[ShardId, None]
    """The shards that have not answered in this round. `merge` changes it in place."""
    residuals: Residuals | None
    """Of the last round."""


@dataclass(frozen=True)
class ADMM:
    """Consensus ADMM: each shard solves its own problem, prices pull the solutions together."""

    asynchronous: ClassVar[bool] = False

    rho: Positive = 0.01
    """ρ: the strength of the pull, in units of the mean loss's curvature."""
    relaxation: Annotated[float, Meta(gt=0, lt=2)] = 1.5
    """α: over-relaxation, 1 (none) to below 2."""
    l2: NotNegative = 0.0
    """Weight of (l2/2)‖z‖² in the mean loss: weight decay, done right."""
    l1: NotNegative = 0.0
    """Weight of l1·‖z‖₁ in the mean loss: sparsity."""
    rounds: Count = 0
    """Rounds in the run; 0 makes ten a pass, but none of fewer than ten steps."""
    balance_rounds: Count = 0
    """Rounds in which ρ follows the residuals; 0 keeps ρ fixed."""
    stop: bool = False
    """Whether to finish early, when the stopping rule is met."""
    absolute_tolerance: NotNegative = 1e-4
    """ε_abs."""
    relative_tolerance: NotNegative = 1e-2
    """ε_rel."""

    def shards(self, workers: int) -> int:
        """One a worker: every round waits for all of them."""
        return workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters with zero duals."""
        check(self)
        duals = {shard.id: np.zeros_like(parameters) for shard in plan.shards}
        solutions = {shard.id: np.zeros_like(parameters) for shard in plan.shards}
        rounds, missing = plan.rounds(self.rounds), everyone(plan)
        return State(plan, parameters.copy(), 0, rounds, self.rho, duals, solutions, missing, None)

    def wanted(self, state: State) -> Collection[ShardId]:
        """The shards that this round still misses."""
        agreed = self.stop and state.residuals is not None and state.residuals.met
        if state.version == state.rounds or agreed:
            return ()
        return state.missing

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """Start at z, anchored at z - u_i, with ρ in units of the shard's own mean loss."""
        plan, z = state.plan, state.parameters
        weight = len(plan.shards) * plan[shard].samples / plan.samples
        steps = plan.round_steps(shard, state.version, state.rounds)
        progress, pace = state.version / state.rounds, 1 / (state.rounds * steps)
        return Assignment(z, progress, pace, steps, anchor=z - state.duals[shard], rho=state.rho / weight)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """Keep the shard's solution; agree on the next consensus when the round is complete."""
        z, x = state.parameters, state.solutions[shard]

        def keep(parts: Sequence[slice]) -> None:
            for part in parts:
                np.subtract(z[part], update.delta[part], out=x[part])

        share(z.size, keep)
        del state.missing[shard]
        return state if state.missing else self.agree(state)

    def agree(self, state: State) -> State:
        """The z and u updates of a complete round."""
        z, rho, N = state.parameters, state.rho, len(state.plan.shards)
        number = z.dtype.type
        alpha = number(self.relaxation)
        shards = [(state.solutions[shard.id], state.duals[shard.id]) for shard in state.plan.shards]

        # ‖·‖² row by row: of all x_i - z, all x_i, all u_i, z - z_old and z.
        squares = np.zeros((5, rows(z.size)))

        def agree(parts: Sequence[slice]) -> None:
            scratch = np.empty((3, min(CHUNK, z.size)), z.dtype)
            for part in parts:
                other, mean, old = scratch[:, : part.stop - part.start]
                primal, x_square, u_square, moved, z_square = squares[:, part.start // ROW : rows(part.stop)]
                np.multiply(z[part], 1 - alpha, out=old)  # what over-relaxation keeps of z
                mean.fill(0)
                for x, u in shards:
                    np.multiply(x[part], alpha, out=other)
                    u[part] += other
                    mean += u[part]
                mean /= number(N)
                mean += old
                new = self.prox(mean, rho)
                old -= new  # what every u_i + α x_i still lacks to be u_i + x̂_i - z
                for x, u in shards:
                    u[part] += old
                    np.subtract(x[part], new, out=other)
                    add_squares(other, primal)
                    add_squares(x[part], x_square)
                    add_squares(u[part], u_square)
                np.subtract(new, z[part], out=other)
                add_squares(other, moved)
                add_squares(new, z_square)
                z[part] = new

        share(z.size, agree)
        primal, x_square, u_square, moved, z_square = (math.fsum(line) for line in squares.tolist())
        floor = (z.size * N) ** 0.5 * self.absolute_tolerance
        R = rho * state.plan.samples / N
        residuals = Residuals(
            primal=primal**0.5,
            dual=R * (N * moved) ** 0.5,
            primal_tolerance=floor + self.relative_tolerance * max(x_square, N * z_square) ** 0.5,
            dual_tolerance=floor + self.relative_tolerance * R * u_square**0.5,
        )
        state = structs.replace(state, version=state.version + 1, missing=everyone(state.plan), residuals=residuals)
        return self.balance(state) if state.version <= self.balance_rounds else state

    def prox(self, mean: Vector, rho: float) -> Vector:
        """argmin over z of l1·‖z‖₁ + (l2/2)‖z‖² + (ρ/2)‖z - mean‖², elementwise."""
        number = mean.dtype.type
        if self.l1:
            mean = np.sign(mean) * np.maximum(np.abs(mean) - number(self.l1 / rho), 0)
        return mean * number(rho / (rho + self.l2)) if self.l2 else mean

    def balance(self, state: State) -> State:
        """Residual balancing; y = ρu, the unscaled dual, does not change."""
        assert state.residuals is not None
        r, s = state.residuals.primal, state.residuals.dual
        factor = 2.0 if r > 10 * s else 0.5 if s > 10 * r else 1.0
        if factor != 1.0:
            for u in state.duals.values():
                u /= u.dtype.type(factor)
        return structs.replace(state, rho=state.rho * factor)

    def report(self, state: State) -> dict[str, float]:
        """Rounds completed, ρ, and the last round's residuals over their tolerances (below 1: met)."""
        numbers: dict[str, float] = {"round": state.version, "rho": state.rho}
        if state.residuals is not None:
            r = state.residuals
            numbers |= {"primal_residual": r.primal, "dual_residual": r.dual}
            for name, residual, tolerance in (
                ("primal_ratio", r.primal, r.primal_tolerance),
                ("dual_ratio", r.dual, r.dual_tolerance),
            ):
                if tolerance:  # with an absolute tolerance of 0 and a dual of 0 there is none to compare with
                    numbers[name] = residual / tolerance
        return numbers


def everyone(plan: Plan) -> dict[ShardId, None]:
    """The shards of a round that begins."""
    return {shard.id: None for shard in plan.shards}
