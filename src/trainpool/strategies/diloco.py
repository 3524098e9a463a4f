"""DiLoCo: many local steps everywhere, then one outer step with Nesterov momentum along the mean delta.

Rule, with Δ_i the delta of shard i's task (H local steps from w), M shards with steps left:

    each round:   g ← (1/M) Σ Δ_i
                  m ← μ m + g
                  w ← w - η (g + μ m)

η = 1, μ = 0 is Local SGD. In the long run a delta moves w by η/(1-μ) of its length, 7 times with the default settings.
That makes up for the mean of M unlike deltas being shorter than each of them.

Citation: Douillard, A., Feng, Q., Rusu, A. A., Chhaparia, R., Donchev, Y., Kuncoro, A., Ranzato, M., Szlam, A.,
Shen, J.: "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, arXiv:2311.08105,
algorithm 1.
Deviations and traps:
- The paper trains language models with AdamW inside and H = 500. Inside, any optimizer of the recipe does; its state
  starts anew with each task, where the paper's workers keep it.
- Tasks last equally long, so a slow worker's have fewer steps. All deltas count the same, as in the paper: a shard's
  part of the run is its steps.
- `participation="partial"` makes a round of the workers that are there, whatever the number of shards; the shards that
  were trained least come first, and a worker that joins in mid-round waits for the next one.
- `average="rda"`, from "Decoupled DiLoCo", 2026, averages directions and norms apart, so that the
  step's length does not depend on how many shards answer. There it is taken of each tensor, here of the whole vector.
- With few steps a task, successive deltas are alike and momentum adds them up: where training is unstable, lower η
  or μ, and keep η/(1-μ) when you change μ.
"""

from dataclasses import dataclass
from typing import ClassVar

from trainpool.messages import Count, Fraction, Positive
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Participation, Plan
from trainpool.strategies.reducer import Average, Preset, Reducer, Weights

__all__ = ["DiLoCo"]


@dataclass(frozen=True)
class DiLoCo(Preset):
    """Local steps, and an outer optimizer with Nesterov momentum."""

    asynchronous: ClassVar[bool] = False

    learning_rate: Positive = 0.7
    """η: the outer learning rate, in units of the mean delta."""
    momentum: Fraction = 0.9
    """μ: how much of the last rounds' direction is kept, 0 to below 1."""
    steps: Count = 20
    """H: local steps of a round; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all of a round's tasks last equally long."""
    average: Average = "mean"
    """Whether deltas are averaged (`mean`), or their directions and norms apart (`rda`)."""

    weights: Weights = "uniform"
    """n_i: whether deltas count the same, or as the samples that they were trained on."""

    participation: Participation = "full"
    """Whether a round waits for every shard, or (`partial`) is of the workers that are there, a task each."""

    def reducer(self, plan: Plan) -> Reducer:
        """Rounds, and the Nesterov step."""
        outer = Outer("nesterov", self.learning_rate, self.momentum)
        return Reducer(
            steps=self.steps,
            flexible=self.flexible,
            weights=self.weights,
            average=self.average,
            limit=0 if self.participation == "partial" else None,
            outer=outer,
        )
