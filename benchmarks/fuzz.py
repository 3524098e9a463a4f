"""Whole runs with random machines, faults, methods and settings, in virtual time; what must always hold is checked.

Each seed is one case; a case that fails is named by its seed, and `--first SEED --seeds 1` runs it again. Most train
nothing, every fourth trains a small convex problem, every third goes through bytes and back in the middle, as a run
that is resumed does, and must end with the same bits.
"""

import argparse
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainpool import strategies, wire
from trainpool.coordinator import Coordinator
from trainpool.errors import ConfigError
from trainpool.events import Accepted, Asked, Failed, Finished, Left, Rejected, Send, Stopped
from trainpool.kernels.protocol import Arrays, KernelError
from trainpool.messages import Recipe, Report, Task
from trainpool.pace import Pace
from trainpool.pools.fleet import Change, EventName, Fleet, fleet
from trainpool.pools.protocol import Arrival
from trainpool.pools.simulated import SimulatedPool
from trainpool.strategies import AnyStrategy, Plan, ShardPlan
from trainpool.testing import Quadratic, check_ledger
from trainpool.vector import Layout, Vector

EVENTS = 1_000_000
"""A case that takes more does not end."""


class Flaky(Quadratic):
    """A problem whose tasks fail now and then."""

    def __init__(self, sizes: Sequence[int], part: float) -> None:
        super().__init__(sizes)
        self.part = part

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        if random.Random(task.id).random() < self.part:
            raise KernelError("it broke")
        return super().run(task, vector, anchor, shard, out)


class Case:
    """What a seed stands for."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.seed = seed
        self.strategy, self.name = self.method()
        self.trains = seed % 4 == 0
        workers = dice.choice([1, 2, 3, 8, 20, dice.randint(1, 120)])
        batch = 8 if self.trains else dice.choice([1, 8, 32])
        count = dice.choice([self.strategy.shards(workers), dice.randint(1, 30)])
        longest = 100
        if self.trains:  # which takes a thousand times as long
            workers, count, longest = min(workers, 8), min(count, 8), 20
        steps = [dice.randint(1, dice.choice([3, 30, longest])) for _ in range(count)]
        self.kernel = (
            Flaky([dice.randint(8, 60) for _ in steps], dice.choice([0.0, 0.02, 0.02, 0.95])) if self.trains else None
        )
        ids = list(self.kernel.data) if self.kernel else [f"{number:064x}" for number in range(count)]
        parts = (ShardPlan(shard, 40, batch, each) for shard, each in zip(ids, steps, strict=True))
        self.plan = Plan(tuple(parts), Recipe(batch_size=batch, learning_rate=0.02, warmup=dice.choice([0.0, 0.1])))
        self.fleet = self.machines(workers, max(steps) * batch)
        self.pace: dict[str, Any] = {
            "target": 10 ** dice.uniform(-2, 1),
            "probe": dice.choice([1, 5, 20]),
            "grace": dice.choice([0.1, 1.0, 30.0]),
            "first": dice.choice([1.0, 300.0]),
            "speculate": dice.random() < 0.7,
            "limit": dice.choice([None, None, 0 if workers < 20 else 50, 1, 10]),
        }
        self.patience = dice.choice([1, 1000])
        self.order = dice.randint(0, 9)

    def method(self) -> tuple[AnyStrategy, str]:
        """A method with its defaults, or some of its settings changed."""
        dice = self.dice
        name, kind = dice.choice(sorted(strategies.discover().items()))
        known = strategies.settings(kind)
        choices: dict[str, list[Any]] = {
            "rounds": [0, 1, 2, 5],
            "steps": [0, 1, 7, 20],
            "warm_start": [0.0, 0.05, 0.5],
            "participation": ["full", "partial"],
        }
        options = {key: dice.choice(values) for key, values in choices.items() if key in known and dice.random() < 0.6}
        try:
            chosen = strategies.build(name, options)
            chosen.init(np.zeros(1), Plan((ShardPlan("a", 40, 8, 100),), Recipe()))
        except ConfigError:  # not every method takes every value
            return strategies.build(name, {}), name
        return chosen, f"{name} {options}"

    def machines(self, n: int, largest: int) -> Fleet:
        """Machines that stay long enough, now and then, for the largest task."""
        dice = self.dice
        speed, spread = 10 ** dice.uniform(1, 4), dice.choice([1.0, 3.0, 30.0])
        bandwidth = None if dice.random() < 0.4 else (10 ** dice.uniform(4, 8), 10 ** dice.uniform(4, 8))
        faults: dict[str, Any] = {
            "spread": spread,
            "speed": speed,
            "bandwidth": bandwidth,
            "latency": dice.choice([0.0, 0.05]),
            "hidden": dice.choice([0.0, 0.0, 0.3]),
            "lost": dice.choice([0.0, 0.0, 0.3]),
            "duplicated": dice.choice([0.0, 0.0, 0.3]),
            "seed": self.seed,
        }
        longest = largest / speed * spread * (10 if faults["hidden"] else 1)
        longest += 2.1 if bandwidth else 0.1  # models count as 1000 bytes
        if dice.random() < 0.7:
            churn = dice.choice([0.0, 0.1, 0.5, 0.9])
            session = longest * 10 ** dice.uniform(0, 2)
            return fleet(n, churn=churn, session=session, crash=dice.choice([0.0, 0.5, 1.0]), **faults)
        # Comings and goings of no regular kind; the first machine comes back for good.
        changes: list[Change] = []
        for worker in range(n):
            now, there = dice.choice([0.0, dice.uniform(0, longest)]), False
            for _ in range(dice.randint(1, 9)):
                event: EventName = dice.choice(["leave", "crash", "speed"] if there else ["join"])
                there = event in ("join", "speed")
                changes.append(Change(worker, now, event, speed * dice.uniform(0.1, 3) if event == "speed" else 0.0))
                now += longest * dice.choice([0.0, 0.01, 1.0, 10.0]) * dice.random()
            if worker == 0 and not there:
                changes.append(Change(worker, now, "join"))
        machines = fleet(n, **(faults | {"hidden": 0.0}))
        return Fleet(machines.machines, lost=faults["lost"], duplicated=faults["duplicated"], trace=tuple(changes))

    def coordinator(self) -> Coordinator:
        """At the beginning."""
        layout = self.kernel.layout if self.kernel else Layout(())
        vector = np.zeros(layout.size, np.float64 if self.kernel else np.float32)  # as the pool's answers
        return Coordinator(
            self.strategy,
            self.plan,
            layout,
            vector,
            seed=self.order,
            pace=Pace(**self.pace),
            patience=self.patience,
        )

    def run(self, *, reload_at: int = -1) -> tuple[bytes, int]:
        """Run to the end and check every event: the last bits, and how many events there were.

        At event `reload_at` the coordinator goes through bytes.
        """
        coordinator = self.coordinator()
        if self.kernel:
            shards = self.kernel.data.__getitem__
            pool = SimulatedPool(self.fleet, kernel=self.kernel, shards=shards, size=1000)
        else:
            pool = SimulatedPool(self.fleet, fidelity="timing", size=1000)
        pool.open()
        watch = Watch(self.plan)
        for number in range(EVENTS):
            for arrival in pool.poll(1.0, coordinator.alarm):
                assert isinstance(arrival, Arrival)
                assert pool.now() >= watch.now, "time went back"
                watch.now = pool.now()
                if number == reload_at:
                    tree, tensors = wire.decode(wire.encode(*coordinator.save()), Any)
                    coordinator = self.coordinator()
                    coordinator.restore(tree, tensors)
                watch.event(arrival)
                for command in coordinator.handle(arrival.event, pool.now(), arrival.delta, arrival.buffers):
                    watch.command(command)
                    if isinstance(command, Send):
                        pool.send(command)
                    elif isinstance(command, Finished | Stopped):
                        watch.end(coordinator, pool, command)
                        return wire.encode(*coordinator.save()), number
            if number % 101 == 0:
                watch.ledger(coordinator)
        raise AssertionError(f"it does not end within {EVENTS} events: {coordinator.samples} of {self.plan.budget}")


class Watch:
    """An account of a run, and of what must hold in it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.samples: Counter[str] = Counter()
        self.ids: set[int] = set()
        self.asking: set[str] = set()
        self.missed: Counter[str] = Counter()
        """Each worker's unusable answers since the last accepted one."""

    def event(self, arrival: Arrival) -> None:
        """Something happens."""
        match arrival.event:
            case Asked(worker):
                self.asking.add(worker)
            case Left(worker):
                self.asking.discard(worker)
            case Failed(worker):
                self.missed[worker] += 1

    def command(self, command: object) -> None:
        """The coordinator answers."""
        match command:
            case Send(worker, task, parameters):
                assert worker in self.asking, f"{worker} got a task and had not asked"
                self.asking.remove(worker)
                assert task.id not in self.ids, "a task's number came twice"
                self.ids.add(task.id)
                assert task.offset == self.samples[task.shard], "a task begins at another sample than the shard's next"
                assert task.offset // task.batch + task.steps <= self.plan[task.shard].steps, (
                    "a task has steps too many"
                )
                assert np.isfinite(parameters).all()
            case Accepted(_, task, report):
                assert task.offset == self.samples[task.shard], "samples were merged twice"
                assert report.steps == task.steps or (task.partial and report.steps < task.steps)
                self.samples[task.shard] += report.samples
                self.missed.clear()
            case Rejected(worker, _, reason):
                assert reason
                if reason.startswith("its norm"):
                    self.missed[worker] += 1

    def ledger(self, coordinator: Coordinator) -> None:
        """It adds up, and to the samples of the answers that were accepted."""
        check_ledger(coordinator)
        for shard, entry in coordinator.memory.ledger.items():
            assert entry.samples == self.samples[shard]

    def end(self, coordinator: Coordinator, pool: SimulatedPool, last: Finished | Stopped) -> None:
        """All is done, and no machine worked more than it could; or nothing works."""
        self.ledger(coordinator)
        if isinstance(last, Stopped):
            assert self.missed.total() > coordinator.patience, f"it stopped too soon: {last.reason}"
            hopes = {
                lease.worker
                for lease in coordinator.memory.leases.values()
                if not lease.overdue and lease.task.offset == self.samples[lease.task.shard]
            }
            assert hopes <= self.missed.keys(), f"it stopped while others were at work: {last.reason}"
            return
        assert not coordinator.strategy.wanted(coordinator.state)
        assert coordinator.samples == self.plan.budget, "the run ended without all samples"
        usage = pool.usage()
        assert usage.samples >= 0.999999 * coordinator.samples, "more was merged than computed"
        for busy, waiting, there in zip(usage.busy, usage.waiting, usage.there, strict=True):
            assert busy + waiting <= there * 1.000001 + 1e-6 <= usage.seconds * 1.000002 + 2e-6, (
                "more than all the time"
            )
        assert math.isfinite(float(np.sum(coordinator.parameters)))


def check(seed: int) -> int:
    """Run one case; how many events it had. AssertionError says what did not hold."""
    case = Case(seed)
    try:
        bits, events = case.run()
        if seed % 3 == 0:
            again, _ = case.run(reload_at=case.dice.randint(0, events))
            assert bits == again, "after a save and a restore it ended with other bits"
    except Exception as error:
        error.add_note(f"seed {seed}: {case.name}, {len(case.fleet)} machines, {len(case.plan.shards)} shards")
        raise
    return events


def main() -> None:
    """Run many cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many cases; the default takes 6 minutes")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--keep-going", action="store_true", help="name every case that fails, not only the first")
    options = parser.parse_args()
    begin, events, failed = time.monotonic(), 0, []
    watched = sys.stderr.isatty()
    clear = "\r\x1b[K" if watched and sys.stdout.isatty() else ""
    for number, seed in enumerate(range(options.first, options.first + options.seeds), 1):
        try:
            events += check(seed)
        except Exception as error:
            if not options.keep_going:
                raise
            failed.append(seed)
            print(f"{clear}seed {seed}: {type(error).__name__}: {error} ({' '.join(error.__notes__)})", flush=True)
        if watched and number % 20 == 0:
            print(f"\r{number} of {options.seeds} cases, {events:,} events", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begin
    print(f"{clear}{options.seeds - len(failed)} of {options.seeds} cases hold: {events:,} events in {seconds:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
