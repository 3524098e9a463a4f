"""The pool in virtual time: schedules to the second, departures, faults, and the same bits every time."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from trainpool.coordinator import Coordinator
from trainpool.errors import ConfigError, RunError
from trainpool.events import Asked, Event, Failed, Joined, Left, Returned, Send, Tick
from trainpool.kernels.protocol import Arrays, KernelError
from trainpool.messages import Recipe, Report, Task
from trainpool.pace import Pace
from trainpool.pools.fleet import Change, Fleet, Machine, fleet
from trainpool.pools.protocol import Arrival
from trainpool.pools.simulated import SimulatedPool
from trainpool.pools.timing import carry, timing
from trainpool.strategies import ADMM, AnyStrategy, Downpour, FedAvg, FedProx, ParallelSGD, Plan, Serial
from trainpool.testing import InProcessPool, Quadratic, check_ledger, simulate
from trainpool.vector import Vector

NOTHING: Vector = np.empty(0, np.float32)
RECIPE = Recipe(batch_size=8, learning_rate=0.1)


def changes(*rows: tuple[float, Any, float] | tuple[float, Any], worker: int = 0) -> tuple[Change, ...]:
    """The trace of one worker."""
    return tuple(Change(worker, *row) for row in rows)


def send(pool: SimulatedPool, number: int = 0, *, worker: str = "w0", steps: int = 4, partial: bool = False) -> None:
    """A task of 10-sample steps."""
    task = Task(
        id=number, version=0, shard="s", recipe=RECIPE, seed=0, offset=0, steps=steps, batch=10, partial=partial
    )
    pool.send(Send(worker, task, NOTHING, NOTHING, None))


def answer(number: int = 0, *, worker: str = "w0", steps: int = 4, seconds: float) -> Returned:
    """The answer to it."""
    return Returned(worker, Report(task=number, steps=steps, samples=10 * steps, loss=0.0, seconds=seconds))


def happen(pool: SimulatedPool, count: int) -> list[tuple[float, Event]]:
    """The next events, ticks apart, with their times."""
    found: list[tuple[float, Event]] = []
    while len(found) < count:
        arrivals = [message for message in pool.poll(1.0) if isinstance(message, Arrival)]
        found += [(pool.now(), arrival.event) for arrival in arrivals if not isinstance(arrival.event, Tick)]
    return found


def opened(machines: Fleet | list[Machine], **options: Any) -> SimulatedPool:
    """A pool without training whose first worker has asked."""
    pool = SimulatedPool(machines, fidelity="timing", **options)
    pool.open()
    assert happen(pool, 2)[1][1] == Asked("w0")
    return pool


def test_a_task_is_downloaded_computed_and_uploaded() -> None:
    pool = opened([Machine(speed=10.0, up=80.0, down=160.0, latency=0.5)], size=100)
    send(pool)  # 0.5 + 800/160 down, 40/10 to compute, 0.5 + 800/80 up
    assert happen(pool, 2) == [(20.0, answer(seconds=4.0)), (20.0, Asked("w0"))]
    usage = pool.usage()
    assert (usage.samples, usage.busy, usage.up, usage.down) == (40.0, (4.0,), 100, 100)
    assert usage.utilisation == 0.2


def test_a_pull_towards_where_a_task_begins_costs_no_second_download() -> None:
    found = [
        timing(strategy, fleet(4), shards=4, steps=40, batch=8, size=1000)
        for strategy in (FedAvg(steps=20, flexible=False), FedProx(mu=0.1, steps=20, flexible=False), ADMM(rounds=2))
    ]
    assert [(run.updates, run.up, run.down) for run in found] == [(8, 8000, 8000), (8, 8000, 8000), (8, 8000, 16000)]


def test_a_synchronous_method_waits_for_the_slowest_and_an_asynchronous_one_does_not() -> None:
    machines, plan = (Machine(20.0), Machine(10.0)), {"shards": 2, "steps": 8, "batch": 10}
    barrier = timing(ParallelSGD(rounds=4), Fleet(machines), **plan)
    assert barrier.seconds == 4 * 2 * 10 / 10.0  # four rounds of two steps at the slow machine's speed
    assert barrier.utilisation == 0.75  # the fast one works half of the time
    assert (barrier.merged, barrier.wasted, barrier.updates) == (160, 0.0, 8)
    equal = timing(ParallelSGD(rounds=4), Fleet((Machine(15.0), Machine(15.0))), **plan)
    assert equal.seconds == pytest.approx(160 / 30)
    free = timing(Downpour(steps=1, warm_start=0.0), Fleet(machines), shards=32, steps=8, batch=10)
    assert free.seconds == pytest.approx(2560 / 30, rel=0.02)


def coordinator_of(strategy: AnyStrategy, problem: Quadratic, epochs: float = 4, **options: Any) -> Coordinator:
    """A run of a problem from zero."""
    plan = Plan.of(problem.sizes, RECIPE, epochs)
    return Coordinator(strategy, plan, problem.layout, np.zeros(problem.layout.size), **options)


def training(machines: Fleet | list[Machine], problem: Quadratic, **options: Any) -> SimulatedPool:
    """A pool that trains in this process."""
    return SimulatedPool(machines, kernel=problem, shards=problem.data.__getitem__, **options)


@pytest.mark.parametrize("strategy", [ParallelSGD(rounds=3), Downpour(steps=2), Serial()])
def test_equal_machines_without_costs_are_the_pool_in_process(strategy: AnyStrategy) -> None:
    problem = Quadratic()
    ours = coordinator_of(strategy, problem)
    pool = training([Machine(8.0)] * 3, problem)
    assert carry(ours, pool)[0] == "finished"
    theirs = coordinator_of(strategy, problem)
    simulate(theirs, InProcessPool(problem, problem.data.__getitem__, workers=3))
    ends = [(c.parameters.tobytes(), c.memory.updates, c.memory.staleness) for c in (ours, theirs)]
    assert ends[0] == ends[1]


AWAY = (Machine(10.0, up=80.0),)  # an answer of 10 bytes takes a second


@pytest.mark.parametrize(
    ("leaves", "partial", "expected"),
    [
        (2.5, True, [(3.5, answer(steps=2, seconds=2.0)), (3.5, Left("w0"))]),  # two steps of a second were done
        (2.0, True, [(3.0, answer(steps=2, seconds=2.0)), (3.0, Left("w0"))]),
        (0.9, True, [(0.9, Left("w0"))]),
        (2.5, False, [(2.5, Left("w0"))]),
        (4.5, False, [(5.0, answer(seconds=4.0)), (5.0, Left("w0"))]),  # it was sending already
        (9.9, False, [(5.0, answer(seconds=4.0)), (5.0, Asked("w0")), (9.9, Left("w0"))]),
    ],
)
def test_a_worker_that_leaves_hands_in_what_it_has(
    leaves: float, partial: bool, expected: list[tuple[float, Event]]
) -> None:
    trace = changes((0.0, "join"), (leaves, "leave"), (100.0, "join"))
    pool = opened(Fleet(AWAY, trace=trace), size=10)
    send(pool, partial=partial)
    assert happen(pool, len(expected) + 2) == [*expected, (100.0, Joined("w0")), (100.0, Asked("w0"))]
    assert pool.usage().samples == pytest.approx(10 * min(leaves, 4.0))


def test_an_answer_whose_sending_outlasts_the_absence_is_not_sent() -> None:
    pool = opened(Fleet(AWAY, trace=changes((0.0, "join"), (2.5, "leave"), (3.0, "join"))), size=10)
    send(pool, partial=True)
    assert happen(pool, 3) == [(2.5, Left("w0")), (3.0, Joined("w0")), (3.0, Asked("w0"))]


@pytest.mark.parametrize("crashes", [0.5, 2.0, 4.0, 4.5, 5.0])
def test_a_crash_is_silent_until_the_worker_is_back(crashes: float) -> None:
    pool = opened(Fleet(AWAY, trace=changes((0.0, "join"), (crashes, "crash"), (60.0, "join"))), size=10)
    send(pool, partial=True)
    assert happen(pool, 2) == [(60.0, Joined("w0")), (60.0, Asked("w0"))]
    assert pool.usage().samples == pytest.approx(10 * min(crashes, 4.0))
    send(pool)
    assert happen(pool, 2)[0] == (65.0, answer(seconds=4.0))


def test_a_task_for_a_worker_that_crashed_while_it_waited_is_lost() -> None:
    pool = opened(
        Fleet(AWAY * 2, trace=(*changes((0.0, "join"), (1.0, "crash"), (50.0, "join")), Change(1, 2.0, "join")))
    )
    assert happen(pool, 2)[1] == (2.0, Asked("w1"))
    send(pool)
    assert happen(pool, 2) == [(50.0, Joined("w0")), (50.0, Asked("w0"))]
    assert pool.usage().samples == 0


def test_a_machine_that_slows_down_takes_longer() -> None:
    pool = opened(Fleet(AWAY, trace=changes((0.0, "join"), (1.0, "speed", 5.0), (3.0, "speed", 20.0))))
    send(pool)  # 10 samples in a second, 10 in two, 20 in one
    assert happen(pool, 2)[0] == (4.0, answer(seconds=4.0))


def test_hidden_tabs_slow_a_run_down_as_they_should() -> None:
    plan = {"shards": 64, "steps": 100, "batch": 10, "pace": Pace(speculate=False)}
    awake, hidden = (
        timing(Downpour(steps=10, warm_start=0.0), fleet(16, speed=10.0, hidden=part), **plan) for part in (0.0, 0.5)
    )
    # Half the time at a tenth of the speed; the rest is the end, when some still compute and others have nothing left.
    assert awake.seconds / hidden.seconds == pytest.approx(0.55, abs=0.06)
    assert hidden.merged == awake.merged


def test_lost_and_duplicated_answers_come_as_often_as_asked() -> None:
    pool = opened(fleet(1, speed=10.0, lost=0.2, duplicated=0.3))
    copies = []
    for number in range(2000):
        send(pool, number)
        events: list[Event] = []
        while Asked("w0") not in events:
            events += [event for _, event in happen(pool, 1)]
        copies.append(len(events) - 1)
    assert statistics.fmean(count == 0 for count in copies) == pytest.approx(0.2, abs=0.02)
    assert statistics.fmean(count == 2 for count in copies) == pytest.approx(0.3, abs=0.02)


def test_a_faulty_fleet_trains_every_sample_once() -> None:
    problem = Quadratic()
    coordinator = coordinator_of(Downpour(steps=0), problem, 40, pace=Pace(target=1.0))
    rough = fleet(5, spread=8, speed=400.0, churn=0.4, session=2.0, lost=0.1, duplicated=0.1, hidden=0.2)
    pool = training(rough, problem)
    assert carry(coordinator, pool)[0] == "finished"
    check_ledger(coordinator)
    ledger = coordinator.memory.ledger
    for shard in coordinator.plan.shards:
        assert ledger[shard.id].steps == shard.steps
    assert sum(entry.lost for entry in ledger.values()) > 0
    assert coordinator.samples == coordinator.plan.budget
    assert pool.usage().samples >= coordinator.samples
    distance = problem.objective(coordinator.parameters) - problem.objective(problem.optimum)
    assert distance < 0.1 * (problem.objective(np.zeros(6)) - problem.objective(problem.optimum))


class Counting(Quadratic):
    """Counts its tasks, and fails some."""

    def __init__(self, fails: Iterable[int] = ()) -> None:
        super().__init__()
        self.tasks: list[Task] = []
        self.fails = set(fails)

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        self.tasks.append(task)
        if len(self.tasks) in self.fails:
            raise KernelError("it broke")
        return super().run(task, vector, anchor, shard, out)


def test_what_never_arrives_is_never_trained_and_what_breaks_is_told() -> None:
    problem = Counting(fails=[3])
    coordinator = coordinator_of(Downpour(steps=3), problem, 20)
    pool = training(fleet(4, churn=0.4, session=0.05, crash=1.0, lost=0.2), problem)
    seen: list[Event] = []
    carry(coordinator, pool, seen=lambda arrival, now: seen.append(arrival.event))
    answered = [event for event in seen if isinstance(event, Returned | Failed)]
    assert Failed(answered[2].worker, problem.tasks[2].id, "it broke") in answered
    leased = sum(entry.leased for entry in coordinator.memory.ledger.values())
    assert len(answered) == len(problem.tasks) < leased


def test_the_machines_and_the_coordinator_count_the_same_bytes() -> None:
    problem = Counting(fails=[3])
    coordinator = coordinator_of(ADMM(rounds=4), problem, 40)
    rough = fleet(5, spread=8, speed=400.0, churn=0.4, session=2.0, lost=0.1, duplicated=0.1, bandwidth=(1e4, 1e4))
    pool = training(rough, problem)
    carry(coordinator, pool)
    usage, memory = pool.usage(), coordinator.memory
    assert (usage.up, usage.down) == (memory.bytes_up, memory.bytes_down)
    assert usage.up < usage.down / 2  # tasks have an anchor, and some answers are lost


def test_all_seconds_are_accounted_for() -> None:
    problem = Quadratic()
    pool = training(fleet(4, spread=4, churn=0.3, session=3.0, hidden=0.2, lost=0.1), problem)
    carry(coordinator_of(ParallelSGD(rounds=5), problem, 400), pool)
    usage = pool.usage()
    for busy, waiting, there in zip(usage.busy, usage.waiting, usage.there, strict=True):
        assert busy + waiting == pytest.approx(there)  # transfers are free here
        assert there <= usage.seconds
    computing: dict[int, float] = {}
    for span in pool.spans:
        assert span.start < span.end
        if span.kind == "compute":
            computing[span.worker] = computing.get(span.worker, 0.0) + min(span.end, usage.seconds) - span.start
    assert [computing[i] for i in range(4)] == pytest.approx(usage.busy)


def test_spans_are_bounded_and_in_order() -> None:
    problem = Quadratic()
    pool = training([Machine(8.0, up=768.0, down=384.0)], problem, spans=4)  # for 48 bytes
    carry(coordinator_of(Serial(), problem, pace=Pace(probe=2)), pool)
    expected = [(0.0, 1.0, "download"), (1.0, 3.0, "compute"), (3.0, 3.5, "upload"), (3.5, 4.5, "download")]
    assert [span[1:] for span in pool.spans] == expected


@pytest.mark.parametrize(
    ("pace", "seconds"),
    [
        (Pace(first=7.0, speculate=False), 8.0),  # overdue after 7 s, computed in 1 s
        (Pace(first=7.0), 3.0),  # copied after 2 s, twice the time that it should have taken
    ],
)
def test_the_task_of_a_machine_that_is_gone_goes_to_another(pace: Pace, seconds: float) -> None:
    trace = (*changes((0.0, "join"), (0.5, "crash")), Change(1, 0.0, "join"))
    gone = Fleet((Machine(10.0), Machine(10.0)), trace=trace)
    result = timing(ParallelSGD(rounds=1), gone, shards=2, steps=1, batch=10, pace=pace)
    assert (result.end, result.merged, result.seconds) == ("finished", 20, seconds)


@pytest.mark.parametrize("end", ["leave", "crash"])
def test_a_run_whose_machines_are_gone_for_good_says_so(end: str) -> None:
    gone = Fleet((Machine(10.0),), trace=changes((0.0, "join"), (5.0, end)))
    with pytest.raises(
        RunError, match="nothing can happen any more after 5 virtual seconds: 0 of 1 machines"
    ) as caught:
        timing(Serial(), gone, steps=1000)
    assert "\n" not in str(caught.value)


def test_a_pool_may_be_opened_again() -> None:
    pool = SimulatedPool(fleet(3, churn=0.2, session=5.0), fidelity="timing")
    runs = []
    for _ in range(2):
        plan = Plan.of({f"{i:064x}": 4000 for i in range(8)}, RECIPE, 1)
        coordinator = Coordinator(Downpour(), plan, Quadratic(features=0).layout, NOTHING)
        runs.append((carry(coordinator, pool), pool.usage()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fidelity": "exact"}, "'real' or 'timing', not 'exact'"),
        ({"processes": -1}, "must not be negative"),
        ({"kernel": Quadratic()}, "a kernel needs shards"),
        ({"kernel": Quadratic(), "shards": dict, "fidelity": "timing"}, "leave out the kernel"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulatedPool([Machine(1.0)], **options)
    with pytest.raises(ConfigError, match=r"write SimulatedPool\(tp.fleet\(3\)\)"):
        SimulatedPool(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a kernel"):
        SimulatedPool([Machine(1.0)]).open()
