"""Serial SGD: one task at a time. The reference that every speed-up is measured against.

Rule, with w the parameters and Δ the task's delta:

    w ← w - Δ

Task after task continues where the last one ended, so with plain SGD as the local optimizer any cutting into tasks
gives the parameters of one long run, up to rounding.

Citation: Robbins, H., Monro, S.: "A Stochastic Approximation Method", Annals of Mathematical Statistics 22(3), 1951.
Deviations: the local optimizer's momentum or moments start anew with each task, as they do in every strategy here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np
from msgspec import structs

from trainpool.messages import Count, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, Tally, check
from trainpool.vector import Vector

__all__ = ["Serial"]


class State(msgspec.Struct, frozen=True):
    """Everything that evolves."""

    plan: Plan
    parameters: Vector
    """w: [trainable]."""
    version: int
    tally: Tally


@dataclass(frozen=True)
class Serial:
    """One worker, plain SGD: the baseline of every comparison."""

    asynchronous: ClassVar[bool] = True

    steps: Count = 0
    """Steps of a task; 0 lets the pace decide."""

    def shards(self, workers: int) -> int:
        """One: the whole data set, in one order."""
        return 1

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters."""
        check(self)
        return State(plan, parameters.copy(), 0, Tally.of(plan))

    def wanted(self, state: State) -> Collection[ShardId]:
        """The least trained shard, alone."""
        shard = state.tally.least(state.plan)
        return () if shard is None else (shard,)

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The current parameters."""
        progress = state.tally.progress(state.plan)
        return Assignment(state.parameters, progress, state.plan[shard].batch / state.plan.budget, self.steps or None)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """Move to where the task ended."""
        np.subtract(state.parameters, update.delta, out=state.parameters)
        state.tally.add(shard, update)
        return structs.replace(state, version=state.version + 1)

    def report(self, state: State) -> dict[str, float]:
        """Nothing of its own."""
        return {}
