"""Parallel SGD: train side by side, then average.

Rule, with K shards, w_i the parameters after the steps on shard i, n_i the samples of those steps:

    for each of R rounds:   w_i ← SGD from w on shard i, no communication      (K tasks)
                            w   ← Σ n_i w_i / Σ n_i

`rounds=1` is SimuParallelSGD as published (Algorithm 3): one average at the very end. It is a method for convex
problems, where averaging K machines divides the variance of the result by K (Theorem 12) and leaves its bias alone. A
neural network's loss is not convex: models that drift far apart average into a bad one, so networks want `rounds>1`,
which averages before they drift. That is Local SGD.

Citations: Zinkevich, M., Weimer, M., Smola, A., Li, L.: "Parallelized Stochastic Gradient Descent", NIPS 2010.
Stich, S. U.: "Local SGD Converges Fast and Communicates Little", ICLR 2019 (several rounds).
Deviations: all tasks start from the given parameters instead of zero (the zero network is a saddle point); the average
is weighted by samples, the same thing for the paper's equal shards; the local optimizer's state starts anew each task,
so at one step a task the method is large-batch plain SGD whatever the momentum.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from trainpool.messages import Count, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, check
from trainpool.vector import CHUNK, Vector, share

__all__ = ["ParallelSGD"]


@dataclass(frozen=True)
class Early:
    """An update before its turn. The sum follows the plan's order, so that any order of arrival gives the same bits."""

    delta: Vector
    samples: int


@dataclass(frozen=True)
class State:
    """Everything that evolves."""

    plan: Plan
    parameters: Vector
    """w: [trainable]."""
    version: int
    """Rounds completed."""
    rounds: int
    total: Vector
    """Σ n_i Δ_i over this round's first `turn` shards: [trainable]."""
    samples: int
    """Σ n_i over the same."""
    turn: int
    early: dict[ShardId, Early]


class Missing(Collection[ShardId]):
    """The shards that a round still misses: a view of its state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __contains__(self, shard: object) -> bool:
        place = self.state.plan.places.get(shard, -1)  # type: ignore[call-overload]
        return bool(place >= self.state.turn) and shard not in self.state.early

    def __len__(self) -> int:
        return len(self.state.plan.shards) - self.state.turn - len(self.state.early)

    def __iter__(self) -> Iterator[ShardId]:
        shards = self.state.plan.shards
        return (shards[i].id for i in range(self.state.turn, len(shards)) if shards[i].id not in self.state.early)


@dataclass(frozen=True)
class ParallelSGD:
    """Train side by side, then average: once as published, or in rounds as networks need."""

    asynchronous: ClassVar[bool] = False

    rounds: Count = 0
    """How often the models are averaged; 1 is the published method; 0 averages ten times a pass,
    but not more often than every ten steps."""

    def shards(self, workers: int) -> int:
        """One a worker: every round waits for all of them."""
        return workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters."""
        check(self)
        rounds = plan.rounds(self.rounds)
        return State(plan, parameters.copy(), 0, rounds, np.zeros_like(parameters), 0, 0, {})

    def wanted(self, state: State) -> Collection[ShardId]:
        """The shards that this round still misses."""
        return () if state.version == state.rounds else Missing(state)

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The round's parameters, for the shard's equal share of its steps."""
        steps = state.plan.round_steps(shard, state.version, state.rounds)
        return Assignment(state.parameters, state.version / state.rounds, 1 / (state.rounds * steps), steps)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """Add to the round's sum; average when it is complete."""
        early = state.early
        early[shard] = Early(update.delta, update.samples)
        samples, turn = state.samples, state.turn
        while turn < len(state.plan.shards) and (item := early.pop(state.plan.shards[turn].id, None)):
            add(state.total, item)
            samples, turn = samples + item.samples, turn + 1
        if shard in early:
            early[shard] = Early(update.delta.copy(), update.samples)
        if turn < len(state.plan.shards):
            return replace(state, samples=samples, turn=turn, early=early)
        average(state, samples)
        return replace(state, version=state.version + 1, samples=0, turn=0, early=early)

    def report(self, state: State) -> dict[str, float]:
        """The rounds completed."""
        return {"round": state.version}


def add(total: Vector, item: Early) -> None:
    """total ← total + n_i Δ_i."""
    weight = total.dtype.type(item.samples)

    def work(parts: Sequence[slice]) -> None:
        scratch = np.empty(min(CHUNK, total.size), total.dtype)
        for part in parts:
            weighted = np.multiply(item.delta[part], weight, out=scratch[: part.stop - part.start])
            total[part] += weighted

    share(total.size, work)


def average(state: State, samples: int) -> None:
    """w ← w - total / Σ n_i, and total ← 0."""
    w, total, number = state.parameters, state.total, state.total.dtype.type

    def work(parts: Sequence[slice]) -> None:
        for part in parts:
            total[part] /= number(samples)
            w[part] -= total[part]
            total[part] = 0

    share(total.size, work)
