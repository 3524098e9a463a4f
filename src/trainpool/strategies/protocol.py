"""What a strategy is: the types between a published method and the coordinator that runs it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec

from trainpool.errors import ConfigError
from trainpool.messages import Recipe, ShardId, Update
from trainpool.vector import Vector

__all__ = [
    "Assignment",
    "Participation",
    "Plan",
    "Rounds",
    "ShardPlan",
    "State",
    "Strategy",
    "Tally",
    "check",
    "misfit",
]

Participation: TypeAlias = Literal["full", "partial"]


@dataclass(frozen=True, slots=True)
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
        return self.index[shard]

    @cached_property
    def index(self) -> Mapping[ShardId, ShardPlan]:
        """Each shard's part by its name."""
        return {shard.id: shard for shard in self.shards}

    @cached_property
    def budget(self) -> int:
        """Samples that the run trains, counting each pass."""
        return sum(shard.steps * shard.batch for shard in self.shards)

    @cached_property
    def samples(self) -> int:
        """Samples in the data set."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def shortest(self) -> int:
        """Steps of the shard that has the fewest."""
        return min(shard.steps for shard in self.shards)

    def rounds(self, wanted: int) -> int:
        """How many synchronous rounds the run has: `wanted`, where every task then has a step.

        Where that is 0: ten a pass over the data, but fewer where tasks would have less than ten steps.
        """
        usual = min(round(10 * self.budget / self.samples), self.shortest // 10)
        return max(1, min(wanted or usual, self.shortest))

    def round_steps(self, shard: ShardId, number: int, rounds: int) -> int:
        """A shard's steps in round `number` (from 0) of `rounds`: equal shares that add up to its steps exactly."""
        steps = self[shard].steps
        return (number + 1) * steps // rounds - number * steps // rounds


@dataclass
class Tally:
    """What was merged so far: the part of a state that most methods share. `merge` may change it in place."""

    left: dict[ShardId, int]
    """The steps that each shard has left, in the plan's order; of the unfinished shards alone."""
    samples: int = 0
    """Merged samples over all shards."""

    @classmethod
    def of(cls, plan: Plan) -> "Tally":
        """Nothing was merged yet."""
        return cls({shard.id: shard.steps for shard in plan.shards})

    def add(self, shard: ShardId, update: Update) -> None:
        """Count a merged update of an unfinished shard."""
        left = self.left[shard] - update.steps
        if left > 0:
            self.left[shard] = left
        else:
            del self.left[shard]
        self.samples += update.samples

    def progress(self, plan: Plan) -> float:
        """The part of the budget that is done, 0 to 1."""
        return self.samples / plan.budget

    def least(self, plan: Plan) -> ShardId | None:
        """The unfinished shard of which the smallest part was trained; None when there is none."""
        return max(self.left, key=lambda shard: self.left[shard] / plan[shard].steps, default=None)


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """What a strategy sends for a shard. Its arrays may be views of the state: valid until the next merge."""

    parameters: Vector
    """Where the worker starts: `[trainable]`."""
    progress: float
    """The part of the run's samples trained before the task, 0 to 1: where the learning-rate schedule stands."""
    pace: float
    """How much `progress` grows with each of the task's steps."""
    steps: int | None = None
    """Steps the task must take; None leaves it to the coordinator's pace."""
    flexible: bool = False
    """Whether `steps` is meant for the fastest worker: a slower one then gets fewer, in proportion to its speed, so
    that all tasks last equally long, and one that must leave early may answer with the steps that it has."""
    limit: int | None = None
    """The staleness above which the answer is of no use: it is refused, and its samples are trained again. None leaves
    it to the run's bound; `sys.maxsize` takes any."""
    rebased: bool = False
    """Whether the update must come with the parameters that the task carried, as `Update.base`."""
    anchor: Vector | None = None
    """Centre of the proximal term (rho/2)·‖x - anchor‖²: `[trainable]`. None stands for `parameters`."""
    rho: float = 0.0
    """Strength of the proximal term; 0 leaves it out."""


class State(Protocol):
    """What every strategy's state has. A state is a frozen `msgspec.Struct` that holds all that evolves."""

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

    def wanted(self, state: S) -> Collection[ShardId]:
        """The shards whose update would help now; none when the run is finished.

        A list will do; with thousands of shards a collection that answers `in` and `len` without a search is faster,
        such as `Tally.left`. It is asked once a state, after `init` and after every `merge`. While the version
        stays, a shard may leave the collection but not enter it.
        """

    def assign(self, state: S, shard: ShardId) -> Assignment:
        """What to send for a wanted shard."""

    def merge(self, state: S, shard: ShardId, update: Update) -> S:
        """The next state, after one admitted update of a wanted shard."""

    def report(self, state: S) -> dict[str, float]:
        """Numbers of the method's own that a person may want to follow, by name."""


AnyStrategy = Strategy[Any]


@runtime_checkable
class Rounds(Protocol):
    """What a method has besides, whose rounds can do without some of the shards that they want."""

    @property
    def participation(self) -> Participation:
        """`full`: a round waits for every shard that it wants. `partial`: for those that were leased before its first
        answer came; who asks later waits for the next round, and so do the other shards.
        """

    def close(self, state: Any) -> Any:
        """The state after a round's end with the updates that came, at least one."""


def check(strategy: AnyStrategy) -> None:
    """Compare a strategy's settings with their types and bounds; rules that join several settings are `init`'s own.

    Raises:
        ConfigError: one does not fit, or is not finite; the method and the setting are named.
    """
    method = type(strategy).__module__.rpartition(".")[2].replace("_", "-")
    values = msgspec.to_builtins(strategy)
    for setting, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{method}: {setting}: must be a finite number, not {value}")
    try:
        msgspec.convert(values, type(strategy))
    except msgspec.ValidationError as error:
        raise misfit(method, error) from error


def misfit(method: str, error: msgspec.ValidationError) -> ConfigError:
    """What is wrong with a setting, on one line."""
    text, _, setting = str(error).partition(" - at `$.")
    return ConfigError(f"{method}: {setting.rstrip('`')}: {text}")
