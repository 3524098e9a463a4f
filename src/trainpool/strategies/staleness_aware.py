"""Staleness-aware asynchronous SGD: divide the step by the update's staleness.

Rule, with Δ the delta of a task, τ its staleness:

    w ← w - (η/τ) Δ             η itself for τ ≤ 1

With `buffer=c` the server waits for c updates and steps along their mean, each divided by its staleness: n-softsync,
where c is the number of workers over n. With equal speeds τ is about the number of workers, so the updates of all of
them together move w about as far as one.

Citation: Zhang, W., Gupta, S., Lian, X., Liu, J.: "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI
2016.
Deviations and traps:
- The paper pushes single gradients (H = 1) and finds that accruing them "generally leads to a worse model". Here a task
  of one step would be mostly transfer.
- Without the division, the paper's network for CIFAR-10 does not learn at all where staleness is about 15 or 30.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from trainpool.messages import Count, Positive
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Discount, Preset, Reducer

__all__ = ["StalenessAware"]


@dataclass(frozen=True)
class StalenessAware(Preset):
    """A step with every update, divided by its staleness."""

    asynchronous: ClassVar[bool] = True

    learning_rate: Positive = 1.0
    """η: 1 moves the parameters as far as a fresh update's worker went."""
    buffer: Annotated[int, Meta(ge=1)] = 1
    """c: updates a step."""
    steps: Count = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """Small buffers with the inverse discount."""
        return Reducer(
            buffer=self.buffer,
            steps=self.steps,
            flexible=self.flexible,
            weights="uniform",
            discount=Discount("inverse"),
            outer=Outer(learning_rate=self.learning_rate),
        )
