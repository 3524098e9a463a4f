"""FedOpt: the mean delta of a round is a gradient for an adaptive outer optimizer.

Rule, with g = Σ n_i Δ_i / Σ n_i the mean delta of a round, elementwise:

    m ← β₁ m + (1 - β₁) g
    adagrad   v ← v + g²
    adam      v ← β₂ v + (1 - β₂) g²
    yogi      v ← v - (1 - β₂) g² sign(v - g²)
    w ← w - η m/(√v + τ)

Citation: Reddi, S. J., Charles, Z., Zaheer, M., Garrett, Z., Rush, K., Konečný, J., Kumar, S., McMahan, H. B.:
"Adaptive Federated Optimization", ICLR 2021, algorithm 2.
Deviations and traps:
- There is no bias correction, as in the paper. v begins at τ², the least that the paper allows.
- τ matters: far below |g| the step is η·sign(g) at first, far above it is FedAvg with step η/τ.
- The step's length hardly depends on g, so that η must suit how far parameters have to travel: η·rounds. It does not
  fall with the recipe's schedule.
- The paper's β₁ = 0.9 remembers ten rounds, of thousands; the default remembers two.
- A round asks for all shards; the paper samples clients.
- Algorithm 2 takes the plain mean of the deltas. Here each counts by the samples that it was trained on, as in FedAvg:
  slow workers' tasks have fewer steps. Where all tasks have equally many samples it is the same.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trainpool.messages import Count, Fraction, Positive
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Preset, Reducer

__all__ = ["FedOpt"]


@dataclass(frozen=True)
class FedOpt(Preset):
    """FedAdam, FedAdagrad and FedYogi: averages in rounds, adaptive steps along them."""

    asynchronous: ClassVar[bool] = False

    optimizer: Literal["adam", "adagrad", "yogi"] = "adam"
    """The outer optimizer."""
    learning_rate: Positive = 0.1
    """η."""
    beta1: Fraction = 0.5
    """β₁: how much of the last rounds' direction is kept."""
    beta2: Fraction = 0.99
    """β₂: how much of the last rounds' squares is kept; adagrad keeps all."""
    tau: Positive = 0.01
    """τ: added to √v; about the size of a typical element of the mean delta."""
    steps: Count = 20
    """H: local steps of a round; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all of a round's tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """Rounds, weighted by samples, and the adaptive step."""
        outer = Outer(self.optimizer, self.learning_rate, self.beta1, self.beta2, self.tau)
        return Reducer(steps=self.steps, flexible=self.flexible, outer=outer)
