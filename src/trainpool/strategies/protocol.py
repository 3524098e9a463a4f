"""What a strategy is: the types between a published method and the coordinator that runs it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from trainpool.messages import Recipe, ShardId, Update
from trainpool.vector import Vector

__all__ = ["Assignment", "Plan", "ShardPlan", "State", "Strategy"]


@dataclass(frozen=True)
class ShardPlan:
    """One shard's part of a run."""

    id: ShardId
    samples: int
    """Rows in the shard."""
    batch: int
    """Samples a step."""
    steps: int
    """Steps that the whole run takes on this shard."""


@dataclass(frozen=True)
class Plan:
    """What a run will train: every shard with its steps, and the recipe."""

    shards: tuple[ShardPlan, ...]
    recipe: Recipe

    @classmethod
    def of(cls, sizes: Mapping[ShardId, int], recipe: Recipe, epochs: float) -> "Plan":
        """A plan that passes over every shard `epochs` times, to the nearest whole batch (at least one)."""
        shards = []
        for shard, samples in sizes.items():
            batch = recipe.batch_size or samples
            shards.append(ShardPlan(shard, samples, batch, max(1, round(epochs * samples / batch))))
        return cls(tuple(shards), recipe)

    def __getitem__(self, shard: ShardId) -> ShardPlan:
        return next(item for item in self.shards if item.id == shard)

    @property
    def budget(self) -> int:
        """Samples that the run trains, counting each pass."""
        return sum(shard.steps * shard.batch for shard in self.shards)

    @property
    def samples(self) -> int:
        """Samples in the data set."""
        return sum(shard.samples for shard in self.shards)

    def rounds(self, wanted: int) -> int:
        """How many synchronous rounds the run has: `wanted`, where every task then has a step.

        Where that is 0: ten a pass over the data, but fewer where tasks would have less than ten steps.
        """
        shortest = min(shard.steps for shard in self.shards)
        usual = min(round(10 * self.budget / self.samples), shortest // 10)
        return max(1, min(wanted or usual, shortest))

    def round_steps(self, shard: ShardId, number: int, rounds: int) -> int:
        """A shard's steps in round `number` (from 0) of `rounds`: equal shares that add up to its steps exactly."""
        steps = self[shard].steps
        return (number + 1) * steps // rounds - number * steps // rounds

    def progress(self, trained: Mapping[ShardId, int]) -> float:
        """The part of the budget that is done, 0 to 1, when `trained` steps were merged of each shard."""
        return sum(trained.get(shard.id, 0) * shard.batch for shard in self.shards) / self.budget

    def unfinished(self, trained: Mapping[ShardId, int]) -> list[ShardId]:
        """The shards with steps left, the least trained first, otherwise in the plan's order."""
        left = [shard for shard in self.shards if trained.get(shard.id, 0) < shard.steps]
        return [shard.id for shard in sorted(left, key=lambda shard: trained.get(shard.id, 0) / shard.steps)]


@dataclass(frozen=True)
class Assignment:
    """What a strategy sends for a shard. Its arrays may be views of the state: valid until the next merge."""

    parameters: Vector
    """Where the worker starts: `[trainable]`."""
    progress: float
    """The part of the run's samples trained before the task, 0 to 1: where the learning-rate schedule stands."""
    pace: float
    """How much `progress` grows with each of the task's steps."""
    steps: int | None = None
    """Steps the task must take; None leaves it to the coordinator's pace."""
    anchor: Vector | None = None
    """Centre of the proximal term (rho/2)·‖x - anchor‖²: `[trainable]`."""
    rho: float = 0.0


class State(Protocol):
    """What every strategy's state has. A state is a frozen dataclass that holds all that evolves."""

    @property
    def parameters(self) -> Vector:
        """The current model: `[trainable]`."""

    @property
    def version(self) -> int:
        """How often `parameters` has changed."""


S = TypeVar("S")


class Strategy(Protocol[S]):
    """A published method: what to send next, and how an update changes the parameters.

    An instance is a frozen dataclass of hyper-parameters. It knows no workers, no clock and no files. `merge` may
    reuse the arrays of the state it is given, which is then spent, but changes neither the update nor the parameters
    that `init` was given.
    """

    asynchronous: ClassVar[bool]
    """Whether an update is merged at once; otherwise it waits for the rest of its round."""

    def shards(self, workers: int) -> int:
        """How many shards suit the method with that many workers, where the user does not say."""

    def init(self, parameters: Vector, plan: Plan) -> S:
        """The first state. Raises ConfigError where the hyper-parameters do not fit the plan."""

    def wanted(self, state: S) -> Sequence[ShardId]:
        """The shards whose update would help now; none when the run is finished."""

    def assign(self, state: S, shard: ShardId) -> Assignment:
        """What to send for a wanted shard."""

    def merge(self, state: S, shard: ShardId, update: Update) -> S:
        """The next state, after one admitted update of a wanted shard."""

    def report(self, state: S) -> dict[str, float]:
        """Numbers of the method's own that a person may want to follow, by name."""


def is_finite_positive(value: float) -> bool:
    """Whether a hyper-parameter is a number above zero."""
    return math.isfinite(value) and value > 0


AnyStrategy = Strategy[Any]
