"""FedProx: FedAvg with a pull that keeps local models near the one they began at, and with partial work welcome.

Rule, with f_i the loss of shard i, Δ_i the delta of H local steps on f_i(x) + (μ/2)‖x - w‖² from x = w:

    each round:   w ← w - Σ n_i Δ_i / Σ n_i          over the shards that have steps left

With μ = 0 it is FedAvg; a task of one step does not feel μ. It is ADMM without its duals, which pull towards the
consensus even where shards disagree.

Citation: Li, T., Sahu, A. K., Zaheer, M., Sanjabi, M., Talwalkar, A., Smith, V.: "Federated Optimization in
Heterogeneous Networks", MLSys 2020, algorithm 2.
Deviations and traps:
- A round asks for all shards, weighted by the samples trained; the paper samples clients by their size.
- Partial work is the coordinator's: a slow worker's task has fewer steps, and one that leaves early may answer with
  those it took.
- The local solve is SGD and needs learning rate·(L + μ) < 2, L the loss's curvature.
"""

from dataclasses import dataclass
from typing import ClassVar

from trainpool.messages import Count, NotNegative
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Preset, Reducer

__all__ = ["FedProx"]


@dataclass(frozen=True)
class FedProx(Preset):
    """FedAvg with a proximal term, for shards that differ."""

    asynchronous: ClassVar[bool] = False

    mu: NotNegative = 0.01
    """μ: the strength of the pull, in units of the mean loss's curvature; the paper tries 0.001 to 1."""
    steps: Count = 20
    """H: local steps of a round; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all of a round's tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """Rounds of tasks that are pulled to where they began."""
        return Reducer(steps=self.steps, flexible=self.flexible, mu=self.mu)
