"""How a method would schedule its work on a fleet, without any training: 100,000 machines in seconds."""

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainpool.coordinator import Coordinator
from trainpool.errors import ConfigError, RunError
from trainpool.events import Accepted, Finished, Send, Stopped
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.fleet import Fleet
from trainpool.pools.protocol import Arrival, Message
from trainpool.pools.simulated import SimulatedPool
from trainpool.strategies.protocol import AnyStrategy, Plan, ShardPlan
from trainpool.vector import Layout

__all__ = ["Timing", "carry", "timing"]

ENDS = (Finished, Stopped)


@dataclass(frozen=True)
class Timing:
    """What a run without training came to."""

    end: str
    """`finished`, or why it stopped."""
    events: int
    """That the coordinator handled."""
    seconds: float
    """Virtual time from the first arrival to the end."""
    updates: int
    """Merged."""
    refused: int
    """Answers that were not merged: too stale, or after another worker's."""
    merged: int
    """Samples whose update was merged."""
    computed: float
    """Samples that machines computed."""
    wasted: float
    """Of those, the ones that were never merged: lost, cut off, refused, or still under way at the end."""
    up: int
    """Bytes that arrived at the coordinator."""
    down: int
    """Bytes that the coordinator sent."""
    utilisation: float
    """The part of the machines' time, 0 to 1, in which they computed."""
    real: float
    """Seconds that the simulation took."""


def timing(
    strategy: AnyStrategy,
    fleet: Fleet,
    *,
    shards: int = 0,
    steps: int = 100,
    batch: int = 32,
    size: int = 0,
    recipe: Recipe | None = None,
    pace: Pace | None = None,
    seed: int = 0,
) -> Timing:
    """Simulate a whole run of a method: scheduling, bytes and waste are real, models are empty.

    Args:
        strategy: the method.
        fleet: the machines.
        shards: how many shards; 0 lets the method choose.
        steps: that the run takes on each shard.
        batch: samples a step.
        size: bytes of a model.
        recipe: what workers do; only its schedule matters here.
        pace: how long tasks of free length last, and when they are overdue.
        seed: of the order of equally trained shards.

    Raises:
        ConfigError: the numbers do not fit.
        RunError: nothing can happen any more, and the run is not finished.
    """
    count = shards or strategy.shards(len(fleet))
    if count < 1 or steps < 1 or batch < 1:
        raise ConfigError(f"shards ({count}), steps ({steps}) and batch ({batch}) must be 1 or more")
    parts = tuple(ShardPlan(f"{number:064x}", steps * batch, batch, steps) for number in range(count))
    plan = Plan(parts, recipe or Recipe(batch_size=batch))
    begin = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # there will be millions of small objects, and none in a cycle
    try:
        coordinator = Coordinator(strategy, plan, Layout(()), np.empty(0, np.float32), seed=seed, pace=pace)
        pool = SimulatedPool(fleet, fidelity="timing", size=size)
        end, events = carry(coordinator, pool)
    finally:
        if collecting:
            gc.enable()
    usage, memory = pool.usage(), coordinator.memory
    return Timing(
        end=end,
        events=events,
        seconds=usage.seconds,
        updates=memory.updates,
        refused=sum(entry.rejected for entry in memory.ledger.values()),
        merged=coordinator.samples,
        computed=usage.samples,
        wasted=usage.samples - coordinator.samples,
        up=usage.up,
        down=usage.down,
        utilisation=usage.utilisation,
        real=time.perf_counter() - begin,
    )


class Virtual(Protocol):
    """A pool in virtual time that can open without a job."""

    time: float

    def open(self) -> None: ...
    def poll(self, timeout: float, alarm: float) -> list[Message]: ...
    def send(self, command: Send) -> None: ...
    def close(self) -> None: ...


def carry(
    coordinator: Coordinator,
    pool: Virtual,
    *,
    seen: Callable[[Arrival, float], None] | None = None,
    most: int | None = None,
) -> tuple[str, int]:
    """Carry events and commands between the two until the run ends: "finished" or why it stopped, and the events.

    `seen` is called with each event, and when, before the coordinator handles it; when it raises, the run breaks off.

    Raises:
        RunError: the pool was asked `most` times, and the run has not ended.
    """
    pool.open()
    events, poll, handle, send = 0, pool.poll, coordinator.handle, pool.send
    try:
        for _ in itertools.count() if most is None else range(most):
            for arrival in poll(1.0, coordinator.alarm):
                if type(arrival) is not Arrival:
                    continue
                events += 1
                if seen is not None:
                    seen(arrival, pool.time)
                for command in handle(arrival.event, pool.time, arrival.delta, arrival.buffers):
                    if type(command) is Send:
                        send(command)
                    elif type(command) is not Accepted and isinstance(command, ENDS):
                        return ("finished" if isinstance(command, Finished) else command.reason), events
        raise RunError(f"the run does not end: it wants updates still after {most} events")
    finally:
        pool.close()
