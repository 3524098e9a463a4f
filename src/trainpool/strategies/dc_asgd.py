"""DC-ASGD: asynchronous SGD that corrects a stale gradient for how far the parameters have moved since.

Rule, with g the task's gradient, w_b the parameters it began at, w those that it meets, elementwise:

    w ← w - η (g + λ g⊙g⊙(w - w_b))             g⊙g stands for the diagonal of the Hessian
    constant   λ = λ₀
    adaptive   λ = λ₀/√(MS + ε),   MS ← m MS + (1 - m) g²

Citation: Zheng, S., Meng, Q., Wang, T., Chen, W., Yu, N., Ma, Z.-M., Liu, T.-Y.: "Asynchronous Stochastic Gradient
Descent with Delay Compensation", ICML 2017, algorithms 1 and 2.
Deviations and traps:
- A task takes H local steps at rate γ, and its delta Δ stands for H gradients: g = Δ/(γH), η = f γH, so that the rule
  is w ← w - f (Δ + γH λ g⊙g⊙(w - w_b)). The paper has H = 1, where the correction is a Taylor term; beyond, it is a
  heuristic. γ stays constant within a task.
- The correction of an element never undoes more than it moved, w - w_b: where γHλg² > 1, the expansion means nothing.
- The coordinator keeps the parameters of every version that is still out, as the paper's server does for each worker.
- λ = 0, or no delay, is plain asynchronous SGD.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec
import numpy as np
from msgspec import structs

from trainpool.messages import Count, Fraction, NotNegative, Positive, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, Tally, check
from trainpool.strategies.reducer import cautious
from trainpool.vector import CHUNK, Vector, share

__all__ = ["DCASGD"]


class State(msgspec.Struct, frozen=True):
    """Everything that evolves."""

    plan: Plan
    parameters: Vector
    """w: [trainable]."""
    version: int
    squares: Vector
    """MS: [trainable]; empty with a constant λ."""
    tally: Tally
    staleness: int
    """Of the last update, in versions."""


@dataclass(frozen=True)
class DCASGD:
    """Asynchronous SGD with delay compensation."""

    asynchronous: ClassVar[bool] = True

    compensation: Literal["adaptive", "constant"] = "adaptive"
    """Whether λ is scaled by the gradients' size, or the same for every element."""
    strength: NotNegative | None = None
    """λ₀; None takes the paper's: 2 adaptive, 0.04 constant."""
    decay: Fraction = 0.95
    """m: how much of the earlier squares MS keeps."""
    epsilon: Positive = 1e-7
    """ε: added to MS, against 0/0."""
    factor: NotNegative = 0.0
    """f: 1 moves the parameters as far as the worker went; 0 takes 8 over the number of shards, at most 0.35."""
    steps: Count = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""

    def shards(self, workers: int) -> int:
        """Four a worker, so that a fast worker takes over what a slow one has not reached."""
        return 4 * workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters with MS = 0."""
        check(self)
        squares = np.zeros_like(parameters if self.compensation == "adaptive" else parameters[:0])
        return State(plan, parameters.copy(), 0, squares, Tally.of(plan), 0)

    def wanted(self, state: State) -> Collection[ShardId]:
        """Every shard with steps left."""
        return state.tally.left

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The current parameters, at a constant rate; they are needed again when the answer comes."""
        progress = state.tally.progress(state.plan)
        return Assignment(state.parameters, progress, 0.0, self.steps or None, flexible=self.flexible, rebased=True)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """One corrected step."""
        w, base, squares = state.parameters, update.base, state.squares
        assert base is not None
        number, adaptive = w.dtype.type, self.compensation == "adaptive"
        strength = (2.0 if adaptive else 0.04) if self.strength is None else self.strength
        length = update.rate * update.steps  # γH; 0 as a warm-up begins, where Δ = 0 tells nothing
        factor = self.factor or cautious(state.plan)

        @np.errstate(over="ignore", invalid="ignore")  # at a rate near 0 the square may be more than a float holds
        def step(parts: Sequence[slice]) -> None:
            scratch = np.empty((3, min(CHUNK, w.size)), w.dtype)
            for part in parts:
                move, g2, other = scratch[:, : part.stop - part.start]
                move[:] = update.delta[part]
                if length:
                    np.divide(move, number(length), out=g2)
                    g2 *= g2
                    if adaptive:
                        MS = squares[part]
                        MS *= number(self.decay)
                        MS += np.multiply(g2, number(1 - self.decay), out=other)
                        np.sqrt(np.add(MS, number(self.epsilon), out=other), out=other)
                        g2 /= other
                    g2 *= number(length * strength)
                    np.fmin(g2, 1, out=g2)  # and not `minimum`: where g² is infinite, g²/√g² is NaN
                    g2 *= np.subtract(w[part], base[part], out=other)
                    move += g2
                move *= number(factor)
                w[part] -= move

        share(w.size, step)
        state.tally.add(shard, update)
        return structs.replace(state, version=state.version + 1, staleness=update.staleness)

    def report(self, state: State) -> dict[str, float]:
        """The last update's staleness."""
        return {"staleness": state.staleness}
