"""Parallel SGD: train side by side, then average.

Rule, with K shards, w_i the parameters after the steps on shard i, n_i the samples of those steps:

    for each of R rounds:   w_i ← SGD from w on shard i, no communication      (K tasks)
                            w   ← Σ n_i w_i / Σ n_i

`rounds=1` is SimuParallelSGD as published (Algorithm 3): one average at the very end. It is a method for convex
problems, where averaging K machines divides the variance of the result by K (Theorem 12) and leaves its bias alone. A
neural network's loss is not convex: models that drift far apart average into a bad one, so networks want `rounds>1`,
which averages before they drift. That is Local SGD.

Citations: Zinkevich, M., Weimer, M., Smola, A., Li, L.: "Parallelized Stochastic Gradient Descent", NIPS 2010.
Stich, S. U.: "Local SGD Converges Fast and Communicates Little", ICLR 2019 (several rounds).
Deviations: all tasks start from the given parameters instead of zero (the zero network is a saddle point); the average
is weighted by samples, the same thing for the paper's equal shards; the local optimizer's state starts anew each task,
so at one step a task the method is large-batch plain SGD whatever the momentum.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from trainpool.messages import Count, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, check
from trainpool.strategies.reducer import Reducer, State
from trainpool.vector import Vector

__all__ = ["ParallelSGD"]

MEAN = Reducer()
"""Gathers a round's deltas and steps along their mean: w - Σ n_i Δ_i / Σ n_i is Σ n_i w_i / Σ n_i."""


@dataclass(frozen=True)
class ParallelSGD:
    """Train side by side, then average: once as published, or in rounds as networks need."""

    asynchronous: ClassVar[bool] = False

    rounds: Count = 0
    """How often the models are averaged; 1 is the published method; 0 averages ten times a pass,
    but not more often than every ten steps."""

    def shards(self, workers: int) -> int:
        """One a worker: every round waits for all of them."""
        return workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters."""
        check(self)
        return MEAN.init(parameters, plan)

    def wanted(self, state: State) -> Collection[ShardId]:
        """The shards that this round still misses; none after the last, when every shard's steps are done."""
        return MEAN.wanted(state)

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The round's parameters, for the shard's equal share of its steps."""
        rounds = state.plan.rounds(self.rounds)
        steps = state.plan.round_steps(shard, state.version, rounds)
        return Assignment(state.parameters, state.version / rounds, 1 / (rounds * steps), steps)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """Add to the round's sum; average when it is complete."""
        return MEAN.merge(state, shard, update)

    def report(self, state: State) -> dict[str, float]:
        """The rounds completed."""
        return MEAN.report(state)
