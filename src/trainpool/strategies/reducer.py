"""The reducer behind the averaging methods: gather deltas, take their mean, step along it with an outer optimizer.

Rule, with Δ_i the delta of task i, n_i its weight, τ_i its staleness, s(τ) the discount of stale updates:

    g ← Σ n_i s(τ_i) Δ_i / Σ n_i            w ← outer optimizer's step along the gradient g

A *round* gathers one update of every unfinished shard, all of which begin at the round's w; a *partial* one, those of
the workers that were there when it began (partial device participation: Li, X., Huang, K., Yang, W., Wang, S., Zhang,
Z.: "On the Convergence of FedAvg on Non-IID Data", ICLR 2020). A *buffer* gathers K updates of any shards, each begun
at the w of its time; K = 1 steps at once. Published methods are settings of this.

The sum follows the order of the shards' names, and of arrival within a shard, so that the same updates give the same
bits in whatever order they arrive. A round therefore keeps copies of the updates that arrive before their turn, and a
buffer K - 1 copies. At the end of a run a buffer that is filled in part is applied as it is: no update is lost.

Progress: a round's tasks all begin where the schedule stood when the round began, and each of the H steps moves along
by the samples of one such step of all shards, so that H steps span the round; after a partial round, of the part of
them that answered in it. With slow workers, who take fewer, a round trains less, and the next one begins where the
samples say. A buffer's tasks stay at the progress of their start.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import structs

from trainpool.messages import ShardId, Update
from trainpool.strategies.outer import Outer
from trainpool.strategies.protocol import Assignment, Plan, Tally, check
from trainpool.vector import CHUNK, Vector, norm, share

__all__ = ["Average", "Discount", "Held", "Preset", "Reducer", "State", "Weights", "cautious"]

DiscountRule: TypeAlias = Literal["constant", "polynomial", "hinge", "inverse"]
Weights: TypeAlias = Literal["samples", "uniform"]
Average: TypeAlias = Literal["mean", "rda"]


@dataclass(frozen=True)
class Discount:
    """s(τ): how much an update of staleness τ still counts; s(0) = 1."""

    rule: DiscountRule = "constant"
    a: float = 0.5
    b: float = 4.0

    def __call__(self, staleness: int) -> float:
        """s(τ): 1; (1+τ)^-a; 1 up to b, then 1/(a(τ-b)+1); 1/τ, but 1 for τ ≤ 1."""
        match self.rule:
            case "constant":
                return 1.0
            case "polynomial":
                return float((1 + staleness) ** -self.a)
            case "hinge":
                return 1 / (self.a * max(0.0, staleness - self.b) + 1)
            case "inverse":
                return 1 / max(1, staleness)


class Held(msgspec.Struct, frozen=True):
    """An update that waits for its turn."""

    delta: Vector
    """Δ: [trainable]."""
    scale: float
    """What Δ is multiplied by in the sum."""
    weight: float
    """Its part of the divisor."""
    length: float
    """Its weighted norm, where the merge keeps norms."""


class State(msgspec.Struct, frozen=True):
    """Everything that evolves."""

    plan: Plan
    """With its shards in the order of their names, which is the order of every sum."""
    parameters: Vector
    """w: [trainable]."""
    version: int
    """Steps of the outer optimizer."""
    tally: Tally
    first: Vector
    """m: [trainable], or empty."""
    second: Vector
    """v, or D of delayed Nesterov: [trainable], or empty."""
    total: Vector
    """The sum over the updates of this round whose turn has come: [trainable]; empty where none is kept."""
    weight: float = 0.0
    """The divisor's part of the same updates."""
    length: float = 0.0
    """The weighted norms of the same."""
    turn: int = 0
    """Shards of the plan that this round is done with."""
    held: dict[ShardId, list[Held]] = {}
    """Updates before their turn."""
    missing: int = 0
    """Updates until the next step."""
    asked: int = 0
    """Updates that the round began with the want of."""
    progress: float = 0.0
    """The part of the run's samples that was trained when the round began."""
    pace: float = 0.0
    """How much of the run a step of the round's tasks is."""
    staleness: int = 0
    """Of the last update, in versions."""


class Missing(Collection[ShardId]):
    """The unfinished shards that have not answered in a round: a view of its state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __contains__(self, shard: object) -> bool:
        state, shards = self.state, self.state.plan.shards
        # Sums follow the names: all shards before the one whose turn it is have answered, or have no steps left.
        turned = state.turn == len(shards) or str(shard) < shards[state.turn].id
        return not turned and shard not in state.held and shard in state.tally.left

    def __len__(self) -> int:
        return self.state.missing

    def __iter__(self) -> Iterator[ShardId]:
        shards = self.state.plan.shards
        return (shards[i].id for i in range(self.state.turn, len(shards)) if shards[i].id in self)


@dataclass(frozen=True)
class Reducer:
    """Rounds or buffers of deltas, and an outer optimizer."""

    buffer: int | None = None
    """K: updates a step; None gathers rounds."""
    steps: int = 20
    """H: local steps of a task; 0 lets the pace decide."""
    flexible: bool = True
    """Whether H is the fastest worker's, and slower ones take fewer steps in the same time."""
    weights: Weights = "samples"
    """n_i: the samples that the task trained, or 1."""
    discount: Discount = Discount()
    """s(τ)."""
    normalize: bool = False
    """Whether the divisor is Σ n_i s(τ_i): stale updates then count less than fresh ones, but not less alone."""
    average: Average = "mean"
    """`rda` scales the mean of the deltas' directions to the mean of their norms: the mean of K nearly orthogonal
    deltas is shorter by √K. A strategy knows no tensors, so the norm is the whole vector's, not each tensor's."""
    mu: float = 0.0
    """Strength of the pull of a task's steps towards where it began."""
    limit: int | None = None
    """Staleness above which updates are refused."""
    outer: Outer = Outer()

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start from the given parameters with empty moments."""
        plan = replace(plan, shards=tuple(sorted(plan.shards, key=lambda shard: shard.id)))
        summed = self.buffer is None or self.average == "rda"
        total = np.zeros_like(parameters if summed else parameters[:0])
        return self.begin(State(plan, parameters.copy(), 0, Tally.of(plan), *self.outer.moments(parameters), total))

    def begin(self, state: State, part: float = 1.0) -> State:
        """The state before the first update of a round or a buffer. A round costs a look at every shard.

        `part` of its shards will answer, as far as the last round tells.
        """
        state = structs.replace(state, weight=0.0, length=0.0, turn=0)
        if self.buffer:
            return structs.replace(state, missing=self.buffer)
        plan, tally = state.plan, state.tally
        shards = [(shard, left) for shard in plan.shards if (left := tally.left.get(shard.id, 0))]
        samples = part * sum(min(self.steps, left) * shard.batch for shard, left in shards)
        pace = samples / (self.steps * plan.budget) if self.steps else 0.0
        count = len(shards)
        return structs.replace(state, missing=count, asked=count, progress=tally.progress(plan), pace=pace)

    def wanted(self, state: State) -> Collection[ShardId]:
        """Every unfinished shard; in rounds, those of them that have not answered."""
        return state.tally.left if self.buffer else Missing(state)

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The current parameters, for H steps."""
        progress = state.tally.progress(state.plan) if self.buffer else state.progress
        return Assignment(
            state.parameters,
            progress,
            state.pace,
            self.steps or None,
            flexible=self.flexible,
            limit=self.limit,
            rho=self.mu,
        )

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """Gather an update; step when the round is complete or the buffer is full."""
        tally, held = state.tally, state.held
        tally.add(shard, update)
        held.setdefault(shard, []).append(self.hold(update))
        missing = state.missing - 1
        full = missing == 0 or not tally.left
        ready, turn = self.ready(state, full)
        state = structs.replace(weighed(state, ready), turn=turn, missing=missing, staleness=update.staleness)
        if full:
            return self.begin(self.step(state, ready))
        add(state.total, ready)
        if shard in held:  # the delta was lent until here
            held[shard][-1] = structs.replace(held[shard][-1], delta=update.delta.copy())
        return state

    def close(self, state: State) -> State:
        """End a round with the updates that came."""
        ready = [item for shard in sorted(state.held) for item in state.held.pop(shard)]
        return self.begin(self.step(weighed(state, ready), ready), 1 - state.missing / state.asked)

    def hold(self, update: Update) -> Held:
        """An update with its weights."""
        weight = float(update.samples if self.weights == "samples" else 1)
        discounted = weight * self.discount(update.staleness)
        length = norm(update.delta) if self.average == "rda" else 1.0
        scale = discounted / length if length else 0.0
        return Held(update.delta, scale, discounted if self.normalize else weight, discounted * length)

    def ready(self, state: State, full: bool) -> tuple[list[Held], int]:
        """The held updates whose turn in the sum has come, and how many of the plan's shards had theirs."""
        plan, held, turn, items = state.plan, state.held, state.turn, []
        if self.buffer is not None:  # who will still answer is unknown, so all turns come at once
            return [item for shard in sorted(held if full else ()) for item in held.pop(shard)], turn
        while turn < len(plan.shards):
            shard = plan.shards[turn].id
            if shard not in held and shard in state.tally.left:
                break
            items += held.pop(shard, [])
            turn += 1
        return items, turn

    def step(self, state: State, ready: Sequence[Held]) -> State:
        """Step along the mean of what was gathered."""
        w, total, divisor = state.parameters, state.total, state.weight
        if self.average == "rda":
            add(total, ready)
            ready = ()
            divisor = (norm(total) * state.weight / state.length if state.length else 0.0) or 1.0  # all 0: no step
        closes = (state.version + 1) % self.outer.period == 0
        number = w.dtype.type

        def step(parts: Sequence[slice]) -> None:
            scratch = np.empty((2, min(CHUNK, w.size)), w.dtype)
            for part in parts:
                g, other = scratch[:, : part.stop - part.start]
                if total.size:
                    g[:] = total[part]
                    total[part] = 0
                else:
                    g.fill(0)
                for item in ready:
                    g += np.multiply(item.delta[part], number(item.scale), out=other)
                if divisor != 1:
                    g /= number(divisor)
                self.outer.step(w[part], g, state.first[part], state.second[part], other, closes)

        share(w.size, step)
        return structs.replace(state, version=state.version + 1)

    def report(self, state: State) -> dict[str, float]:
        """Rounds completed, or the last update's staleness."""
        return {"staleness": state.staleness} if self.buffer else {"round": state.version}


def weighed(state: State, items: Sequence[Held]) -> State:
    """The state with the weights of updates whose turn has come."""
    weight = sum((item.weight for item in items), state.weight)
    return structs.replace(state, weight=weight, length=sum((item.length for item in items), state.length))


def add(total: Vector, items: Sequence[Held]) -> None:
    """total ← total + Σ scale_i Δ_i."""

    def work(parts: Sequence[slice]) -> None:
        scratch = np.empty(min(CHUNK, total.size), total.dtype)
        for part in parts:
            for item in items:
                scale = total.dtype.type(item.scale)
                total[part] += np.multiply(item.delta[part], scale, out=scratch[: part.stop - part.start])

    if items:
        share(total.size, work)


def cautious(plan: Plan) -> float:
    """A step size for asynchronous methods that neither average nor discount: 2/M, but at most 0.35.

    M workers' deltas that begin at the same parameters would otherwise be added up. A strategy does not know M, but
    that there are four shards a worker.
    """
    return min(0.35, 8 / len(plan.shards))


class Preset(ABC):
    """A method that is a setting of the reducer: subclasses name it, and all else follows."""

    asynchronous: ClassVar[bool]

    @abstractmethod
    def reducer(self, plan: Plan) -> Reducer:
        """The settings."""

    def shards(self, workers: int) -> int:
        """One a worker for rounds, which wait for all; otherwise four, so that fast workers take over from slow."""
        return 4 * workers if self.asynchronous else workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """See `Reducer.init`."""
        check(self)
        return self.reducer(plan).init(parameters, plan)

    def wanted(self, state: State) -> Collection[ShardId]:
        """See `Reducer.wanted`."""
        return self.reducer(state.plan).wanted(state)

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """See `Reducer.assign`."""
        return self.reducer(state.plan).assign(state, shard)

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """See `Reducer.merge`."""
        return self.reducer(state.plan).merge(state, shard, update)

    def close(self, state: State) -> State:
        """See `Reducer.close`."""
        return self.reducer(state.plan).close(state)

    def report(self, state: State) -> dict[str, float]:
        """See `Reducer.report`."""
        return self.reducer(state.plan).report(state)
