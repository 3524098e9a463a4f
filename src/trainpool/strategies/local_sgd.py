"""Local SGD: H steps on every shard, then an average, as few as one step apart.

Rule, with Δ_i the delta of shard i's task (H local steps from w), K shards with steps left:

    each round:   w ← w - (1/K) Σ Δ_i                `weights="samples"`:   w ← w - Σ n_i Δ_i / Σ n_i

On strongly convex problems K workers are K times as fast as one as long as H = O(√(T/(K b))), with T steps of batch b
in the run: the further it gets, the rarer models need to meet.

Citation: Stich, S. U.: "Local SGD Converges Fast and Communicates Little", ICLR 2019, algorithm 1.
Deviations and traps:
- H is the same for all tasks, as in the paper, whatever the worker's speed: a round lasts as long as its slowest task.
  `FedAvg` is the same rule with tasks of equal duration.
- The uniform mean is the paper's, for equal shards. Where shards or batches differ, weight by samples.
- The local optimizer's state starts anew with each task: at H = 1 momentum has no effect.
"""

from dataclasses import dataclass
from typing import ClassVar

from trainpool.messages import Count
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Preset, Reducer, Weights

__all__ = ["LocalSGD"]


@dataclass(frozen=True)
class LocalSGD(Preset):
    """A fixed number of local steps everywhere, then an average."""

    asynchronous: ClassVar[bool] = False

    steps: Count = 10
    """H: local steps between averages; 0 lets the pace decide."""
    weights: Weights = "uniform"
    """Whether each delta counts the same, as published, or by the samples that it trained."""

    def reducer(self, plan: Plan) -> Reducer:
        """Rounds of tasks of the same length."""
        return Reducer(steps=self.steps, flexible=False, weights=self.weights)
