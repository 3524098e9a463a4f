"""FedAvg: every shard trains for a while from the same parameters, then the deltas are averaged by samples.

Rule, with Δ_i the delta of shard i's task (H local steps from w), n_i the samples of those steps:

    each round:   w ← w - Σ n_i Δ_i / Σ n_i          over the shards that have steps left

Local SGD is the same rule by another name. With H = 1 and plain SGD a round is one step on a large batch (FedSGD).

Citation: McMahan, H. B., Moore, E., Ramage, D., Hampson, S., Agüera y Arcas, B.: "Communication-Efficient Learning of
Deep Networks from Decentralized Data", AISTATS 2017, algorithm 1.
Deviations and traps:
- A round asks for all shards, the paper's C = 1: shards are no clients that come and go, workers are.
- H counts steps; the paper's E epochs are H = E·n_i/B. A shard that runs out of steps takes part no longer.
- Tasks last equally long, so a slow worker's have fewer steps and count less. `flexible=False` gives every task H.
- The local optimizer's state starts anew with each task: at H = 1 momentum has no effect.
- The mean of M deltas is shorter than one of them where they disagree. A larger step (`DiLoCo`) makes up for it.
"""

from dataclasses import dataclass
from typing import ClassVar

from trainpool.messages import Count
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Preset, Reducer

__all__ = ["FedAvg"]


@dataclass(frozen=True)
class FedAvg(Preset):
    """Train side by side, average the models by samples, repeat."""

    asynchronous: ClassVar[bool] = False

    steps: Count = 20
    """H: local steps of a round; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all of a round's tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """Rounds, weighted by samples, with a plain step of 1."""
        return Reducer(steps=self.steps, flexible=self.flexible)
