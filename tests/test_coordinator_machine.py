"""The coordinator under any order of events: joins, answers of all kinds, failures, clock jumps, restarts."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trainpool import wire
from trainpool.coordinator import Coordinator
from trainpool.events import (
    Accepted,
    Asked,
    Event,
    Failed,
    Finished,
    Joined,
    Left,
    Rejected,
    Restarted,
    Returned,
    Send,
    Stopped,
    Tick,
    Wait,
)
from trainpool.messages import Recipe, Report
from trainpool.pace import Pace
from trainpool.strategies import Plan, build, discover
from trainpool.strategies import settings as settings_of
from trainpool.testing import check_ledger
from trainpool.vector import Layout

LAYOUT = Layout.of({"w": ((4,), "parameter"), "mean": ((1,), "running-mean"), "var": ((1,), "running-var")})
SIZES = {"aa" * 32: 12, "bb" * 32: 20, "0c" * 32: 7}
WORKERS = [f"w{i}" for i in range(4)]
STRATEGIES = [
    (name, {"rounds": 3} if "rounds" in settings_of(kind) else {}) for name, kind in sorted(discover().items())
] + [("diloco", {"participation": "partial", "steps": 2})]
KINDS = ["good", "good", "good", "nan", "infinite", "buffers", "shape", "type", "huge", "steps", "loss", "seconds"]

workers = st.sampled_from(WORKERS)
picks = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """Sends events and compares the coordinator with a simple account of what happened."""

    @initialize(choice=st.sampled_from(STRATEGIES), seed=st.integers(0, 5), steps=st.integers(3, 12))
    def begin(self, choice: tuple[str, dict[str, Any]], seed: int, steps: int) -> None:
        self.arguments = (choice, seed, steps)
        self.coordinator = self.fresh()
        self.now = 0.0
        self.log: list[tuple[Any, ...]] = []
        self.sent: list[Send] = []
        self.ids: set[int] = set()
        self.samples = dict.fromkeys(SIZES, 0)

    def fresh(self) -> Coordinator:
        """A coordinator at its start."""
        (name, options), seed, steps = self.arguments
        recipe = Recipe(batch_size=3, warmup=0.2)
        plan = Plan.of(SIZES, recipe, 1)
        plan = Plan(tuple(dataclasses.replace(shard, steps=steps + i) for i, shard in enumerate(plan.shards)), recipe)
        pace = Pace(first=60.0, grace=5.0)
        return Coordinator(build(name, options), plan, LAYOUT, np.zeros(6, np.float32), seed=seed, pace=pace)

    def do(self, event: Event, delta: Any = None, buffers: Any = None) -> list[Any]:
        """One event, in the account as well."""
        self.log.append((event, self.now, delta, buffers))
        copies = [None if array is None else array.copy() for array in (delta, buffers)]
        done, before = self.coordinator.memory.done, self.image() if isinstance(event, Returned) else b""
        version = self.coordinator.state.version
        commands = self.coordinator.handle(event, self.now, *copies)
        for command in commands:
            match command:
                case Send(worker, task, parameters):
                    assert not done
                    assert task.id not in self.ids
                    assert task.offset == self.samples[task.shard]
                    assert np.isfinite(parameters).all()
                    assert worker in self.coordinator.memory.workers.keys() - self.coordinator.memory.idle
                    self.ids.add(task.id)
                    self.sent.append(command)
                case Accepted(_, task, report):
                    assert task.offset == self.samples[task.shard]
                    self.samples[task.shard] += report.samples
                case Rejected(_, _, reason):
                    assert reason
                    if self.coordinator.rounds and self.coordinator.state.version > version:
                        assert self.coordinator.state.version == version + 1  # a partial round ended with it
                    else:
                        assert self.image() == before
                case Wait(worker):
                    assert worker in self.coordinator.memory.idle
                case Finished() | Stopped():
                    assert self.coordinator.memory.done
        return commands

    def image(self) -> bytes:
        """The strategy's bits."""
        return wire.encode(*wire.pack(self.coordinator.state))

    def arrays(self, number: int) -> tuple[Any, Any]:
        """An honest delta and buffers."""
        generator = np.random.default_rng(number)
        return generator.normal(size=4).astype(np.float32) * np.float32(0.1), np.ones(2, np.float32)

    @rule(worker=workers)
    def join(self, worker: str) -> None:
        self.do(Joined(worker))

    @rule(worker=workers)
    def ask(self, worker: str) -> None:
        self.do(Asked(worker))

    @rule(worker=workers)
    def leave(self, worker: str) -> None:
        self.do(Left(worker))

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0, 5000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.do(Tick())

    @precondition(lambda self: self.sent)
    @rule(pick=picks, kind=st.sampled_from(KINDS), thief=st.none() | workers)
    def answer(self, pick: int, kind: str, thief: str | None) -> None:
        """An answer to a recent task or an old one, by its worker or another, good or bad."""
        command = self.sent[-1 - pick % len(self.sent)]
        delta, buffers = self.arrays(command.task.id)
        task = command.task
        report = Report(task=task.id, steps=task.steps, samples=task.steps * task.batch, loss=1.0, seconds=2.0)
        match kind:
            case "nan":
                delta[pick % 4] = np.nan
            case "infinite":
                delta[pick % 4] = np.inf
            case "buffers":
                buffers[pick % 2] = np.nan
            case "shape":
                delta = delta[: pick % 4]
            case "type":
                delta = delta.astype(np.int64)
            case "huge":
                delta *= np.float32(1e4)
            case "steps":
                report = msgspec.structs.replace(report, steps=task.steps + 1)
            case "loss":
                report = msgspec.structs.replace(report, loss=float("nan"))
            case "seconds":
                report = msgspec.structs.replace(report, seconds=float("inf"))
        commands = self.do(Returned(thief or command.worker, report), delta, buffers)
        if kind not in ("good", "huge"):
            assert not [c for c in commands if isinstance(c, Accepted)]

    @precondition(lambda self: self.sent)
    @rule(pick=picks, thief=st.none() | workers)
    def fail(self, pick: int, thief: str | None) -> None:
        command = self.sent[-1 - pick % len(self.sent)]
        self.do(Failed(thief or command.worker, command.task.id, "it broke"))

    @rule()
    def restart(self) -> None:
        """As after a crash: through bytes, into a new process."""
        self.reload()
        self.do(Restarted())

    @rule()
    def reload(self) -> None:
        """Through bytes and back: nothing shows."""
        tree, tensors = wire.decode(wire.encode(*self.coordinator.save()), Any)
        self.coordinator = self.fresh()
        self.coordinator.restore(tree, tensors)

    @invariant()
    def the_ledger_adds_up(self) -> None:
        check_ledger(self.coordinator)
        memory = self.coordinator.memory
        for shard, entry in memory.ledger.items():
            leases = [lease for lease in memory.leases.values() if lease.task.shard == shard]
            current = [lease for lease in leases if lease.task.offset == entry.samples and not lease.overdue]
            assert len(current) <= 2  # the second is a copy, for an idle worker
            assert entry.overdue <= entry.leased
            assert entry.samples == self.samples[shard]

    @invariant()
    def the_model_is_finite(self) -> None:
        assert np.isfinite(self.coordinator.parameters).all()
        assert np.isfinite(self.coordinator.buffers).all()

    def teardown(self) -> None:
        """One good worker finishes the run; the same events then give the same bits."""
        if not hasattr(self, "coordinator"):
            return
        if self.coordinator.memory.done:
            self.do(Restarted())
        for _ in range(300):
            if self.coordinator.memory.done:
                break
            self.now += 5000.0
            for command in self.do(Asked("good")):
                if isinstance(command, Send) and command.worker == "good":
                    task = command.task
                    samples = task.steps * task.batch
                    report = Report(task=task.id, steps=task.steps, samples=samples, loss=1.0, seconds=2.0)
                    self.do(Returned("good", report), *self.arrays(task.id))
            self.the_ledger_adds_up()
        assert self.coordinator.memory.done
        assert not self.coordinator.strategy.wanted(self.coordinator.state)
        assert self.coordinator.samples == self.coordinator.plan.budget
        again = self.fresh()
        for event, now, delta, buffers in self.log:
            again.handle(event, now, delta, buffers)
        assert wire.encode(*again.save()) == wire.encode(*self.coordinator.save())


Machine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None, derandomize=True)
TestCoordinator = Machine.TestCase
