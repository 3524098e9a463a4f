"""FedBuff: asynchronous workers, and a server that steps whenever K updates are in.

Rule, with Δ_i the delta of a task, τ_i its staleness when it arrives, s(τ) = (1 + τ)^-a:

    when K updates are in:   g ← (1/K) Σ s(τ_i) Δ_i
                             m ← μ m + g
                             w ← w - η m

Nobody waits, yet a step has the variance of K updates. K = 1 is FedAsync in delta form; K = M fresh updates are FedAvg.

Citation: Nguyen, J., Malik, K., Zhan, H., Yousefpour, A., Rabbat, M., Malek, M., Huba, D.: "Federated Learning with
Buffered Asynchronous Aggregation", AISTATS 2022, algorithm 1.
Deviations and traps:
- The mean is divided by K, not by the sum of the s(τ_i), as in the paper: a buffer of stale updates makes a small step.
- The last buffer of a run may hold fewer than K updates; their own number divides it then.
- With M workers, M/K steps are made in the time of one synchronous round. Momentum, which the algorithm
  as printed lacks, multiplies their length by 1/(1-μ): keep η/(1-μ) when you change μ.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from trainpool.messages import Count, Fraction, NotNegative, Positive
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Average, Discount, Preset, Reducer, Weights

__all__ = ["FedBuff"]


@dataclass(frozen=True)
class FedBuff(Preset):
    """Asynchronous updates, applied K at a time."""

    asynchronous: ClassVar[bool] = True

    buffer: Annotated[int, Meta(ge=1)] = 4
    """K: updates a step; about half the workers or fewer."""
    learning_rate: Positive = 1.0
    """η: the outer learning rate, in units of the mean delta."""
    momentum: Fraction = 0.0
    """μ: how much of the last steps' direction is kept, 0 to below 1."""
    a: NotNegative = 0.5
    """Exponent of the discount (1 + τ)^-a; 0 discounts nothing."""
    steps: Count = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""
    weights: Weights = "uniform"
    """Whether each delta counts the same, as published, or by the samples that it trained."""
    average: Average = "mean"
    """Whether deltas are averaged (`mean`), or their directions and norms apart (`rda`)."""

    def reducer(self, plan: Plan) -> Reducer:
        """Buffers with a polynomial discount."""
        return Reducer(
            buffer=self.buffer,
            steps=self.steps,
            flexible=self.flexible,
            weights=self.weights,
            discount=Discount("polynomial", self.a),
            average=self.average,
            outer=Outer("sgd", self.learning_rate, self.momentum),
        )
