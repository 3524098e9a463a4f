"""Downpour SGD: a parameter server that steps whenever an update arrives.

Rule, in task form: a worker fetches w, takes n local steps at rate α, and pushes its accrued gradient g = Σ g_h:

    worker:   x ← w;   n times:  x ← x - α ∇f(x; batch)          g = (w - x)/α
    server:   adagrad   G ← G + g²;   w ← w - γ g/(√G + ε)       per parameter
              sgd       w ← w - η g                                with η = `factor`·α

Citation: Dean, J., Corrado, G., Monga, R., et al.: "Large Scale Distributed Deep Networks", NIPS 2012, section 4.1 and
the appendix. Adagrad: Duchi, J., Hazan, E., Singer, Y., JMLR 12, 2011.
Deviations and traps:
- The paper's client pushes on step 0 and fetches before it pushes, so with n > 1 it discards n-1 local gradients and
  is not SGD even with one worker. In task form (fetch at the start, push at the end) one worker with α = η is.
- Adagrad sees the square of the *accrued* gradient, (Σ g)², not Σ g². `accrue="mean"` gives it g/n, `accrue="sum"` is
  the paper's. The paper itself only used n = 1, where they agree. The sgd rule always steps along the sum.
- Adagrad's first step is γ·sign(g), which is huge, and 0/0 where g = 0: hence ε = 1e-10 and the warm start, in which
  one replica trains alone (the paper's figures start from plain SGD) while G already accumulates.
- γ follows the recipe's schedule, as α does; the paper's γ is constant, which is `schedule="constant"` here. With a
  cosine the last updates no longer jump about.
- With another local optimizer than plain SGD, (w - x)/α is no longer a gradient but plays the part of one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta

from trainpool.messages import Count, NotNegative, Positive, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, Tally, check
from trainpool.vector import CHUNK, Vector, share

__all__ = ["Downpour"]


class State(msgspec.Struct, frozen=True):
    """Everything that evolves."""

    plan: Plan
    parameters: Vector
    """w: [trainable]."""
    version: int
    squares: Vector
    """Adagrad's G: [trainable]; empty with the `sgd` server."""
    tally: Tally
    staleness: int
    """Of the last update, in versions."""


@dataclass(frozen=True)
class Downpour:
    """Asynchronous SGD through a parameter server with Adagrad."""

    asynchronous: ClassVar[bool] = True

    steps: Count = 20
    """n: local steps between fetch and push; 0 lets the pace decide. The paper used 1."""
    server: Literal["adagrad", "sgd"] = "adagrad"
    """How the server steps."""
    learning_rate: Positive = 0.01
    """γ of adagrad, where the recipe's schedule is at its peak; it falls as the workers' rate does."""
    factor: Positive = 1.0
    """η/α of sgd, and of the warm start: 1 moves the parameters as far as the worker went."""
    epsilon: NotNegative = 1e-10
    """Added to √G, against 0/0."""
    accrue: Literal["sum", "mean"] = "sum"
    """Whether Adagrad takes the sum of a task's gradients, as in the paper, or their mean."""
    warm_start: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """The part of the run, 0 to 1, that one replica trains alone; with the plain sgd rule on the server."""

    def shards(self, workers: int) -> int:
        """Four a worker, so that a fast worker takes over what a slow one has not reached."""
        return 4 * workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters with G = 0."""
        check(self)
        squares = np.zeros_like(parameters if self.server == "adagrad" else parameters[:0])
        return State(plan, parameters.copy(), 0, squares, Tally.of(plan), 0)

    def warming(self, state: State) -> bool:
        """Whether one replica still trains alone."""
        return self.warm_start > 0 and state.tally.progress(state.plan) < self.warm_start

    def wanted(self, state: State) -> Collection[ShardId]:
        """Every shard with steps left; the least trained one alone during the warm start."""
        tally = state.tally
        return [shard for shard in (tally.least(state.plan),) if shard] if self.warming(state) else tally.left

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The current parameters."""
        progress = state.tally.progress(state.plan)
        # The rate stays constant within a task (pace 0), so that delta/α is exactly the accrued gradient.
        return Assignment(state.parameters, progress, 0.0, self.steps or None)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """One step of the server."""
        plan, w, G = state.plan, state.parameters, state.squares
        # A warm-up begins at rate 0, where a task moves nothing and has no gradient to tell.
        accrued = 1 / update.rate if update.rate else 0.0
        if self.accrue == "mean":
            accrued /= update.steps
        rate = self.learning_rate * update.rate / plan.recipe.learning_rate
        share(w.size, partial(self.step, w, G, update.delta, accrued, rate, self.warming(state)))
        state.tally.add(shard, update)
        return State(plan, w, state.version + 1, G, state.tally, update.staleness)

    def step(
        self, w: Vector, G: Vector, delta: Vector, accrued: float, rate: float, warming: bool, parts: Sequence[slice]
    ) -> None:
        """Some parts of w and G; `accrued` times the delta is the accrued gradient g, and `rate` is γ."""
        number, adagrad = w.dtype.type, self.server == "adagrad"
        scratch = np.empty((2, min(CHUNK, w.size)), w.dtype)
        for part in parts:
            g, move = scratch[:, : part.stop - part.start]
            if adagrad:
                np.multiply(delta[part], number(accrued), out=g)
                np.multiply(g, number(rate), out=move)
                g *= g
                G[part] += g
            if warming or not adagrad:  # η g = factor·delta
                np.multiply(delta[part], number(self.factor), out=move)
            else:
                np.sqrt(G[part], out=g)
                g += number(self.epsilon)
                move /= g
            w[part] -= move

    def report(self, state: State) -> dict[str, float]:
        """The last update's staleness."""
        return {"staleness": state.staleness}
