"""Ringmaster ASGD: asynchronous SGD that refuses updates which are too stale, and trusts the others fully.

Rule, with Δ the delta of a task, τ its staleness:

    τ ≤ R:   w ← w - η Δ
    τ > R:   the update is refused, and its samples are trained again from the current w

Bounding the delay by refusing is enough for plain asynchronous SGD to need no more time, up to a constant, than any
parallel method can, however unequal the workers are.

Citation: Maranjyan, A., Tyurin, A., Richtárik, P.: "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time
Complexity", ICML 2025.
Deviations and traps:
- An update is a delta of H local steps, not one gradient, and η is in units of it.
- In theory R = ⌈σ²/ε⌉ and η ∝ 1/R. The default R is the number of shards, which only workers a few times slower than
  most exceed. With M workers of equal speed τ is M - 1: a smaller R throws most of the work away.
- The time is optimal where all shards are alike. Where they differ, note that a refused shard is trained by whoever
  asks next: no data belongs to a slow worker.
"""

from dataclasses import dataclass
from typing import ClassVar

from trainpool.messages import Count, NotNegative
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Preset, Reducer, cautious

__all__ = ["Ringmaster"]


@dataclass(frozen=True)
class Ringmaster(Preset):
    """A step with every update that is fresh enough."""

    asynchronous: ClassVar[bool] = True

    learning_rate: NotNegative = 0.0
    """η: 1 moves the parameters as far as the worker went; 0 takes 8 over the number of shards, at most 0.35."""
    limit: Count = 0
    """R: the largest staleness that is not refused; 0 takes the number of shards."""
    steps: Count = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """A step with every update, and the bound."""
        return Reducer(
            buffer=1,
            steps=self.steps,
            flexible=self.flexible,
            weights="uniform",
            limit=self.limit or len(plan.shards),
            outer=Outer(learning_rate=self.learning_rate or cautious(plan)),
        )
