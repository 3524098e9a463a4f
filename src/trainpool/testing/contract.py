"""What every strategy must do: checks that the author of one can call.

    from trainpool.testing import check_strategy
    check_strategy(MyMethod(beta=0.9))

Each check trains a small convex problem on unequal, partly faulty virtual workers and raises AssertionError with the
rule that was broken.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainpool import rng, wire
from trainpool.coordinator import Coordinator
from trainpool.errors import RunError
from trainpool.events import Restarted
from trainpool.journal import Journal
from trainpool.messages import Recipe, ShardId, Update
from trainpool.pools.protocol import Arrival
from trainpool.pools.timing import carry
from trainpool.strategies.protocol import AnyStrategy, Assignment, Participation, Plan, Rounds
from trainpool.testing.pools import Fault, InProcessPool
from trainpool.testing.problems import Logistic, Quadratic
from trainpool.vector import Vector

__all__ = ["CHECKS", "CONVERGENCE", "check_ledger", "check_strategy", "simulate"]

RECIPE = Recipe(learning_rate=0.1, batch_size=8, schedule="cosine")
SPEEDS = (1.0, 2.0, 5.0)
GAP = 0.05
"""Part of the first distance to the smallest objective that may be left after training."""
EPOCHS = 10.0
"""Passes of the checks that ask for no convergence: synchronous methods then have several rounds."""
EVENTS = 100_000


def check_strategy(strategy: AnyStrategy, *, convergence: bool = True) -> None:
    """Every check. `convergence=False` leaves out whether the settings suit the convex problems.

    Raises:
        AssertionError: the strategy breaks a rule, which the message names.
    """
    for check in (*CHECKS, *(CONVERGENCE if convergence else ())):
        check(strategy)


def simulate(
    coordinator: Coordinator, pool: InProcessPool, *, seen: Callable[[Arrival, float], None] | None = None
) -> str:
    """Carry events and commands between the two until the run ends: "finished", or why it stopped.

    `seen` is called with each event before the coordinator handles it; when it raises, the run breaks off there.
    """
    try:
        return carry(coordinator, pool, seen=seen, most=EVENTS)[0]
    except RunError as error:
        raise AssertionError(str(error)) from error


def finish(coordinator: Coordinator, pool: InProcessPool) -> None:
    """`simulate` a run that must complete."""
    end = simulate(coordinator, pool)
    assert end == "finished", f"the run stopped: {end}"


class Spy:
    """A strategy around another that watches every call."""

    asynchronous: ClassVar[bool] = False  # only a user interface reads it

    def __init__(self, strategy: AnyStrategy, *, reload: bool = False) -> None:
        """`reload` sends the state through bytes and back before each merge."""
        self.strategy, self.reload = strategy, reload
        self.merges = 0

    def shards(self, workers: int) -> int:
        return self.strategy.shards(workers)

    def init(self, parameters: Vector, plan: Plan) -> Any:
        before = parameters.copy()
        state = self.strategy.init(parameters, plan)
        assert not np.shares_memory(state.parameters, parameters), "init must copy the parameters it is given"
        assert same(parameters, before), "init changed the parameters it was given"
        assert same(state.parameters, before), "the first state's parameters are not those given"
        assert state.version == 0, "the first state's version is not 0"
        assert self.strategy.wanted(state), "a fresh state wants no shard: nothing would ever be trained"
        return state

    def wanted(self, state: Any) -> Collection[ShardId]:
        wanted = list(self.strategy.wanted(state))
        assert len(set(wanted)) == len(wanted), "wanted() names a shard twice"
        return wanted

    def assign(self, state: Any, shard: ShardId) -> Assignment:
        before = image(state)
        assignment = self.strategy.assign(state, shard)
        assert image(state) == before, "assign() changed the state"
        for name in ("parameters", "anchor"):
            array = getattr(assignment, name)
            if array is not None:
                assert array.dtype == state.parameters.dtype, f"the assignment's {name} are {array.dtype}"
                assert array.shape == state.parameters.shape, f"the assignment's {name} have shape {array.shape}"
        assert 0 <= assignment.progress < 1, f"progress is {assignment.progress}, not from 0 to below 1"
        assert assignment.pace >= 0, f"pace is {assignment.pace}"
        assert assignment.steps is None or assignment.steps >= 1, f"steps is {assignment.steps}"
        return assignment

    def merge(self, state: Any, shard: ShardId, update: Update) -> Any:
        assert np.isfinite(update.delta).all(), "an update with NaN reached merge()"
        assert shard in self.strategy.wanted(state), "merge() got a shard that was not wanted"
        state = self.loaded(state)
        version, before, delta = state.version, state.parameters.copy(), update.delta.copy()
        result = self.strategy.merge(state, shard, update)
        assert same(update.delta, delta), "merge() changed the update's delta"
        update.delta.fill(np.nan)  # the memory is the caller's: a strategy that kept it would show
        assert result.version in (version, version + 1), f"the version went from {version} to {result.version}"
        if result.version == version:
            assert same(result.parameters, before), "the parameters changed, the version did not"
        assert result.parameters.dtype == before.dtype, f"{before.dtype} parameters became {result.parameters.dtype}"
        assert result.parameters.shape == before.shape, "the parameters changed their shape"
        assert all(np.isfinite(value) for value in self.strategy.report(result).values()), "a report is not finite"
        self.merges += 1
        return result

    @property
    def participation(self) -> Participation:
        return self.strategy.participation if isinstance(self.strategy, Rounds) else "full"

    def close(self, state: Any) -> Any:
        state = self.loaded(state)
        assert isinstance(self.strategy, Rounds)
        result = self.strategy.close(state)
        assert result.version == state.version + 1, "close() did not end the round"
        return result

    def loaded(self, state: Any) -> Any:
        """A state, after its way through bytes where that is wanted."""
        if not self.reload:
            return state
        tree, tensors = wire.decode(image(state), Any)
        return wire.unpack(type(state), tree, tensors)

    def report(self, state: Any) -> dict[str, float]:
        return self.strategy.report(state)


def image(state: Any) -> bytes:
    """A state's bits."""
    return wire.encode(*wire.pack(state))


def same(a: Vector, b: Vector) -> bool:
    """Whether two arrays agree in every bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def begin(strategy: AnyStrategy, problem: Quadratic | Logistic, epochs: float, dtype: type = np.float64) -> Coordinator:
    """A run of a problem from zero."""
    plan = Plan.of(problem.sizes, RECIPE, epochs)
    return Coordinator(strategy, plan, problem.layout, np.zeros(problem.layout.size, dtype))


def workers(problem: Quadratic | Logistic, fault: Callable[[int], Fault | None] | None = None) -> InProcessPool:
    """Unequal workers for a problem."""
    return InProcessPool(problem, problem.data.__getitem__, speeds=list(SPEEDS), fault=fault)


def sometimes(fault: Fault, share: float) -> Callable[[int], Fault | None]:
    """A fault of a share of the tasks, at random but always of the same."""
    return lambda task: fault if rng.uniform(rng.key(1), task, 1)[0] < share else None


def check_rules(strategy: AnyStrategy) -> None:
    """Inputs are not changed nor kept, assign changes nothing, versions count, the run ends with every sample."""
    problem = Quadratic()
    coordinator = begin(Spy(strategy), problem, EPOCHS)
    finish(coordinator, workers(problem))
    assert not strategy.wanted(coordinator.state)
    assert coordinator.state.version > 0, "the run ended and the parameters never changed"


def check_types(strategy: AnyStrategy) -> None:
    """float32 stays float32 and float64 stays float64, in every call."""
    problem = Quadratic()
    for dtype in (np.float32, np.float64):
        coordinator = begin(Spy(strategy), problem, EPOCHS, dtype)
        finish(coordinator, workers(problem))
        assert coordinator.parameters.dtype == dtype, f"{dtype} parameters became {coordinator.parameters.dtype}"
        for name, array in wire.pack(coordinator.state)[1].items():
            assert array.dtype == dtype, f"the state's array {name} is {array.dtype} in a run of {dtype}"


def check_state_survives(strategy: AnyStrategy) -> None:
    """A state that went through bytes and back continues with the same bits."""
    problem = Quadratic()
    ends = []
    for reload in (False, True):
        coordinator = begin(Spy(strategy, reload=reload), problem, EPOCHS)
        simulate(coordinator, workers(problem))
        ends.append(image(coordinator.state))
    assert ends[0] == ends[1], "a state that was saved and loaded continues differently: something is not in it"


def check_instance_keeps_nothing(strategy: AnyStrategy) -> None:
    """Two runs of one instance are the same: all that evolves is in the state."""
    problem = Quadratic()
    ends = []
    for _ in range(2):
        coordinator = begin(strategy, problem, EPOCHS)
        simulate(coordinator, workers(problem))
        ends.append(image(coordinator.state))
    assert ends[0] == ends[1], "a second run differs from the first: something evolves outside the state"


def check_duplicates(strategy: AnyStrategy) -> None:
    """Answers that come twice change nothing."""
    problem = Quadratic()
    ends = []
    for share in (0.0, 0.5):
        coordinator = begin(strategy, problem, EPOCHS)
        simulate(coordinator, workers(problem, sometimes("duplicate", share)))
        ends.append(image(coordinator.state))
    assert ends[0] == ends[1], "answers that came twice changed the result"


def check_nan(strategy: AnyStrategy) -> None:
    """Answers with NaN never reach merge, and the run completes without them."""
    problem = Quadratic()
    coordinator = begin(Spy(strategy), problem, EPOCHS)
    finish(coordinator, workers(problem, sometimes("nan", 0.2)))
    assert coordinator.memory.rejected > 0
    assert np.isfinite(coordinator.parameters).all()


def check_replay(strategy: AnyStrategy, seed: int = 0) -> None:
    """A crash after any event leaves a journal whose replay has the same bits; the resumed run completes."""
    problem = Quadratic()
    for keep in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            crash_and_replay(strategy, problem, Path(folder), keep, rng.derive(seed, keep))


class Crash(Exception):  # noqa: N818
    """The process dies here."""


def crash_and_replay(strategy: AnyStrategy, problem: Quadratic | Logistic, folder: Path, keep: bool, seed: int) -> None:
    """One crash: at an event drawn from `seed`, after a snapshot at another."""
    middle, last = sorted(5 + int(bits % 30) for bits in rng.bits(rng.key(seed), 0, 2))
    coordinator, journal = begin(strategy, problem, EPOCHS), Journal(folder, keep=keep)
    journal.snapshot(coordinator)
    events, durable = 0, wire.encode(*coordinator.save())

    def record(arrival: Arrival, now: float) -> None:
        nonlocal events, durable
        if not journal.waiting:
            durable = wire.encode(*coordinator.save())
        if events == middle:
            journal.snapshot(coordinator)
            durable = wire.encode(*coordinator.save())
        if events == last:
            raise Crash
        events += 1
        journal.append(arrival.event, now, arrival.delta, arrival.buffers)

    try:
        simulate(coordinator, workers(problem, sometimes("lose", 0.2)), seen=record)
    except Crash:
        pass
    else:  # the method needs few updates: the journal is then that of a whole run
        journal.flush()
        durable = wire.encode(*coordinator.save())
    journal.database.close()  # as a killed process would: what waits in memory is gone
    for from_start in (False, True) if keep else (False,):
        journal, copy = Journal(folder, keep=keep), begin(strategy, problem, EPOCHS)
        now = journal.recover(copy, from_start=from_start)
        assert wire.encode(*copy.save()) == durable, "the journal's replay differs from the run it recorded"
        journal.close()
    copy.handle(Restarted(), now)
    if strategy.wanted(copy.state):
        finish(copy, workers(problem))


def check_quadratic(strategy: AnyStrategy) -> None:
    """Least squares with every fourth task lost ends near the closed-form optimum."""
    check_converges(strategy, Quadratic())


def check_logistic(strategy: AnyStrategy) -> None:
    """Logistic regression with every fourth task lost ends near the optimum."""
    check_converges(strategy, Logistic())


def check_converges(strategy: AnyStrategy, problem: Quadratic | Logistic) -> None:
    """At most `GAP` of the first distance to the smallest objective is left after 60 passes."""
    coordinator = begin(Spy(strategy), problem, 60)
    finish(coordinator, workers(problem, sometimes("lose", 0.25)))
    lost = sum(entry.lost for entry in coordinator.memory.ledger.values())
    assert lost > 0, "the check lost no task"
    best, first = problem.objective(problem.optimum), problem.objective(np.zeros_like(problem.optimum))
    gap = (problem.objective(coordinator.parameters) - best) / (first - best)
    assert gap <= GAP, f"{gap:.3f} of the distance to the smallest objective is left; {GAP} is allowed"


def check_ledger(coordinator: Coordinator) -> None:
    """Every lease ended in one way or is still out, and what was merged adds up to the samples trained."""
    memory = coordinator.memory
    out = Counter(lease.task.shard for lease in memory.leases.values())
    for shard, entry in memory.ledger.items():
        ended = entry.accepted + entry.rejected + entry.failed + entry.lost
        assert entry.leased == ended + out[shard], f"shard {shard[-4:]}: {entry}, and {out[shard]} out"
        part = coordinator.plan.index[shard]
        assert entry.samples == entry.steps * part.batch
        assert entry.steps <= part.steps, f"shard {shard[-4:]} went beyond its steps"
    assert coordinator.samples == sum(entry.samples for entry in memory.ledger.values())


CHECKS: tuple[Callable[[AnyStrategy], None], ...] = (
    check_rules,
    check_types,
    check_instance_keeps_nothing,
    check_state_survives,
    check_duplicates,
    check_nan,
    check_replay,
)
"""Checks that hold for any settings."""

CONVERGENCE: tuple[Callable[[AnyStrategy], None], ...] = (check_quadratic, check_logistic)
"""Checks that hold for settings which suit the problem."""
