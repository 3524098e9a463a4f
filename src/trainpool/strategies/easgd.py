"""EASGD: every shard trains a replica of its own, tied to a common centre by a spring.

Rule, with x_i the replica of shard i, x̃ the centre, p shards, α = β/p, whenever a task of H local steps is done:

    x_i ← SGD from x_i on shard i
    d   ← α (x_i - x̃)
    x_i ← x_i - d;    x̃ ← x̃ + d                 both move by the same, in opposite directions

The model of the run is the centre. α = 0 trains p networks that know nothing of each other.

Citation: Zhang, S., Choromanska, A., LeCun, Y.: "Deep Learning with Elastic Averaging SGD", NIPS 2015, algorithm 1.
Deviations and traps:
- The paper's worker keeps its replica and exchanges before its steps. Here the replica is in the state and belongs to
  a shard, so that any worker can go on with it, and the exchange is made when the task's answer comes. The state holds
  p + 1 models.
- A replica is as old as its shard's last task, and centres that moved meanwhile do not make it stale: the exchange
  compares it with the centre of the time. So no bound of staleness holds for its tasks.
- It gains from exploring: replicas differ, and few exchanges suffice. The centre lags behind them, so the learning rate
  should fall towards the end, as the default schedule's does.
- The momentum variant (EAMSGD) needs a velocity per replica; momentum in the recipe starts anew with each task.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np
from msgspec import structs

from trainpool.errors import ConfigError
from trainpool.messages import Count, NotNegative, ShardId, Update
from trainpool.strategies.protocol import Assignment, Plan, Tally, check
from trainpool.vector import CHUNK, Vector, share

__all__ = ["EASGD"]


class State(msgspec.Struct, frozen=True):
    """Everything that evolves."""

    plan: Plan
    parameters: Vector
    """x̃: [trainable]."""
    version: int
    replicas: dict[ShardId, Vector]
    """x_i: [trainable] each."""
    tally: Tally


@dataclass(frozen=True)
class EASGD:
    """Elastic averaging: replicas explore, a centre gathers them."""

    asynchronous: ClassVar[bool] = True

    beta: NotNegative = 0.9
    """β = pα: how far the centre moves towards the replicas while each of the p shards answers once."""
    steps: Count = 10
    """H: local steps between exchanges (the paper's τ); 0 lets the pace decide."""
    flexible: bool = True
    """Whether slower workers take fewer than H steps, so that all tasks last equally long."""

    def shards(self, workers: int) -> int:
        """One a worker: each is a whole model in the state."""
        return workers

    def init(self, parameters: Vector, plan: Plan) -> State:
        """Start centre and replicas from the given parameters."""
        check(self)
        if self.beta > len(plan.shards):
            raise ConfigError(f"easgd: beta: must not be above the number of shards, {len(plan.shards)}")
        replicas = {shard.id: parameters.copy() for shard in plan.shards}
        return State(plan, parameters.copy(), 0, replicas, Tally.of(plan))

    def wanted(self, state: State) -> Collection[ShardId]:
        """Every shard with steps left."""
        return state.tally.left

    def assign(self, state: State, shard: ShardId) -> Assignment:
        """The shard's replica."""
        progress = state.tally.progress(state.plan)
        return Assignment(
            state.replicas[shard], progress, 0.0, self.steps or None, flexible=self.flexible, limit=sys.maxsize
        )

    def merge(self, state: State, shard: ShardId, update: Update) -> State:
        """Move the replica to where the task ended, then let it and the centre attract each other."""
        centre, x = state.parameters, state.replicas[shard]
        alpha = x.dtype.type(self.beta / len(state.plan.shards))

        def exchange(parts: Sequence[slice]) -> None:
            scratch = np.empty(min(CHUNK, x.size), x.dtype)
            for part in parts:
                x[part] -= update.delta[part]
                d = np.subtract(x[part], centre[part], out=scratch[: part.stop - part.start])
                d *= alpha
                x[part] -= d
                centre[part] += d

        share(x.size, exchange)
        state.tally.add(shard, update)
        return structs.replace(state, version=state.version + 1)

    def report(self, state: State) -> dict[str, float]:
        """Nothing of its own."""
        return {}
