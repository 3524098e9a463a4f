"""FedAsync: every update moves the server at once, the less the staler it is.

Rule, with Δ the delta of a task, τ its staleness, s one of three discounts:

    w ← w - α s(τ) Δ            constant     s(τ) = 1
                                polynomial   s(τ) = (1 + τ)^-a
                                hinge        s(τ) = 1 for τ ≤ b, else 1/(a (τ - b) + 1)

Citation: Xie, C., Koyejo, S., Gupta, I.: "Asynchronous Federated Optimization", 2019, arXiv:1903.03934, algorithm 1.
Deviations and traps:
- The paper mixes models, w ← (1 - α s) w + α s w_i, which is the same for a fresh update. For a stale one it drags w
  back towards where the task began, and so undoes what others have done meanwhile. Deltas do not.
- The paper pulls local steps towards w with strength `mu` (its ρ); 0 leaves the pull out.
- M workers' deltas add up: choose α·s at M - 1 near 1/M or a few times that. `constant` needs α itself as small.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trainpool.messages import Count, NotNegative, Positive
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Discount, Preset, Reducer

__all__ = ["FedAsync"]


@dataclass(frozen=True)
class FedAsync(Preset):
    """A step with every update, discounted by its staleness."""

    asynchronous: ClassVar[bool] = True

    alpha: Positive = 0.6
    """α: the part of a fresh delta that the server moves by."""
    staleness: Literal["polynomial", "hinge", "constant"] = "polynomial"
    """s: how stale updates are discounted."""
    a: NotNegative = 0.5
    """Exponent of `polynomial`, slope of `hinge` (where the paper has 10)."""
    b: NotNegative = 4.0
    """The staleness up to which `hinge` discounts nothing."""
    mu: NotNegative = 0.0
    """Strength of the pull of local steps towards where the task began."""
    steps: Count = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """A discounted step with every update."""
        return Reducer(
            buffer=1,
            steps=self.steps,
            flexible=self.flexible,
            weights="uniform",
            discount=Discount(self.staleness, self.a, self.b),
            mu=self.mu,
            outer=Outer(learning_rate=self.alpha),
        )
