"""`auto`: the method and the settings that suit a pool's machines. `docs/choosing.md` has the measurements behind it.

One machine gets `serial`, several `diloco`: rounds of few steps with an outer momentum came closest to what the
machines can do together wherever they were tried. What has to follow the machines are three of its settings:

    steps                     H: the fewest with which the slowest machine still has one to do while the fastest does H,
                              and with which a round trip takes no more than half as long as the steps;
                              2 to 500
    momentum, learning_rate   μ, η: such that a round moves the model as far as all its steps would have moved it one
                              after another. The mean of n deltas is n times shorter than their sum, and in the long run
                              a mean delta moves the model by η/(1-μ) of its length: so η/(1-μ) = n. Momentum does it
                              more gently than a large η, hence μ = 1 - 1/n, at most 0.9, and η = n(1-μ), at most 2.

Rounds are partial (`participation`): they follow the machines as these come and go, which nobody knows beforehand.

It has no settings of its own (--set): to choose one of these, name `diloco`.

Citation: Douillard, A., Feng, Q., Rusu, A. A., et al.: "DiLoCo: Distributed Low-Communication Training of Language
Models", 2023, arXiv:2311.08105. The rule for its settings is this package's; for large batches it is the linear scaling
of Goyal, P., et al.: "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677.
"""

import math
from dataclasses import dataclass
from typing import Any

from trainpool import strategies
from trainpool.errors import ConfigError
from trainpool.pools.protocol import Conditions
from trainpool.strategies import AnyStrategy, DiLoCo, Serial

__all__ = ["AUTO", "Choice", "choose", "named"]

AUTO = "auto"
"""Its name where a strategy's is expected."""
LEAST = 2
"""Steps of a round. One would be a large batch; two are as accurate, for half the traffic."""
MOST = 500
"""Steps of a round, as DiLoCo's authors chose; more only lose accuracy."""
ROOM = 2.0
"""How many times as long as a round trip a task should compute."""
GENTLE = 0.9
"""The largest μ: beyond it a run of some hundred rounds ends before its momentum has settled."""
BOLD = 2.0
"""The largest η: beyond it the first rounds diverge."""


@dataclass(frozen=True)
class Choice:
    """What `auto` took, and why."""

    strategy: AnyStrategy
    reason: str


def named(name: str, options: dict[str, Any] | None = None) -> AnyStrategy | str:
    """The strategy of that name with the given settings; `auto` as it is, until the pool is known.

    Raises:
        ConfigError: no such strategy or setting.
    """
    if name != AUTO:
        return strategies.build(name, options)
    if options:
        raise ConfigError(f"{AUTO} chooses the settings itself; to set {', '.join(options)}, name the strategy")
    return AUTO


def choose(conditions: Conditions, size: int) -> Choice:
    """The method for machines like these and a model of `size` bytes."""
    speeds = conditions.speeds
    n = len(speeds)
    if n == 1:
        return Choice(Serial(), "one machine: plain SGD, nothing to merge")
    spread = max(speeds) / min(speeds)
    a_byte, besides = conditions.travel
    travel = a_byte * size + besides
    steps = max(LEAST, min(MOST, max(math.ceil(spread - 1e-9), math.ceil(ROOM * travel))))
    momentum = round(min(GENTLE, 1 - 1 / n), 4)
    rate = round(min(BOLD, n * (1 - momentum)), 4)
    why = [f"{n} machines"]
    if spread > 1:
        why.append(f"the fastest {spread:.3g} times as fast as the slowest")
    if travel:
        why.append(f"a round trip takes {travel:.2g} steps")
    return Choice(
        DiLoCo(steps=steps, momentum=momentum, learning_rate=rate, participation="partial"),
        f"{', '.join(why)}: rounds of {steps} steps, outer momentum {momentum:g} and rate {rate:g}",
    )
