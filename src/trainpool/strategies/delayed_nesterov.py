"""Delayed Nesterov: an asynchronous DiLoCo whose momentum moves only at every N-th update.

Rule, for each update Δ that arrives:

    D ← D + Δ
    every N-th:   m ← μ m + D/N;   w ← w - η ((1 - cN + c) μ m + Δ/N);   D ← 0
    otherwise:                     w ← w - η (c μ m + Δ/N)

With N = 1 it is Nesterov's method; at multiples of N, for a fixed stream of updates, c = 0 is Nesterov on the means of
N of them. What makes plain asynchronous Nesterov diverge is momentum that acts anew with every update.

Citation: Liu, B., Chhaparia, R., Douillard, A., Kale, S., Rusu, A. A., Shen, J., Szlam, A., Ranzato, M.: "Asynchronous
Local-SGD Training for Language Modeling", 2024, arXiv:2401.09135, algorithm 3. Equal durations: section 5.
Deviations and traps:
- The paper's N is about the number of workers, which a strategy does not know. The default is half the number of
  shards, twice the workers where the user does not say.
- The paper's η = 0.7 and μ = 0.9 remember ten periods, which is little of a language model's training and much of a
  short run: the default remembers two, at a similar step in the long run, η/(1-μ).
- Updates that wait for the end of a period when the run ends have moved w, but not m.
"""

from dataclasses import dataclass
from typing import ClassVar

from trainpool.errors import ConfigError
from trainpool.messages import Count, Fraction, NotNegative, Positive
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Plan
from trainpool.strategies.reducer import Preset, Reducer

__all__ = ["DelayedNesterov"]


@dataclass(frozen=True)
class DelayedNesterov(Preset):
    """Step with every update, renew the momentum once in a while."""

    asynchronous: ClassVar[bool] = True

    learning_rate: Positive = 1.0
    """η: the outer learning rate, in units of N deltas' mean."""
    momentum: Fraction = 0.5
    """μ: how much of the last periods' direction is kept, 0 to below 1."""
    period: Count = 0
    """N: updates between two steps of the momentum; 0 takes half the number of shards."""
    c: NotNegative = 0.0
    """How much of the momentum each update but the last of a period applies, 0 to 1/N."""
    steps: Count = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""

    def reducer(self, plan: Plan) -> Reducer:
        """A step with every update."""
        period = self.period or -(-len(plan.shards) // 2)
        if self.c * period > 1:
            raise ConfigError(f"delayed-nesterov: c: must not be above 1/N, here 1/{period}")
        outer = Outer("delayed-nesterov", self.learning_rate, self.momentum, period=period, c=self.c)
        return Reducer(buffer=1, steps=self.steps, flexible=self.flexible, weights="uniform", outer=outer)
