"""The coordinator, event by event."""

import re
from typing import Any

import msgspec
import numpy as np
import pytest

from trainpool import wire
from trainpool.coordinator import Coordinator
from trainpool.errors import MessageError
from trainpool.events import (
    Accepted,
    Asked,
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
from trainpool.strategies import AnyStrategy, Downpour, ParallelSGD, Plan, Serial
from trainpool.vector import Layout

LAYOUT = Layout.of({"w": ((3,), "parameter"), "mean": ((2,), "running-mean")})
IDS = ("aa" * 32, "bb" * 32, "0c" * 32)
GONE = "this worker has no such task (any more)"


def begin(strategy: AnyStrategy | None = None, *, shards: int = 3, steps: int = 20, **options: Any) -> Coordinator:
    """A run of 10-sample shards in batches of 2."""
    recipe = Recipe(batch_size=2, schedule="constant")
    plan = Plan.of(dict.fromkeys(IDS[:shards], 10), recipe, steps / 5)
    strategy = strategy or Downpour(steps=5, warm_start=0.0)
    return Coordinator(strategy, plan, LAYOUT, np.zeros(5, np.float32), **options)


def send(coordinator: Coordinator, worker: str, now: float = 0.0) -> Send:
    """A task for a worker that asks."""
    (command,) = [c for c in coordinator.handle(Asked(worker), now) if isinstance(c, Send) and c.worker == worker]
    return command


def reply(coordinator: Coordinator, sent: Send, now: float = 1.0, worker: str = "", **change: Any) -> list[Any]:
    """The commands that an answer causes."""
    given = sent.task
    report = Report(task=given.id, steps=given.steps, samples=given.steps * given.batch, loss=1.0, seconds=1.0)
    delta, buffers = change.pop("delta", np.full(3, 0.1, np.float32)), np.ones(2, np.float32)
    report = msgspec.structs.replace(report, **change)
    return coordinator.handle(Returned(worker or sent.worker, report), now, delta, buffers)


def test_joining_is_not_asking() -> None:
    coordinator = begin()
    assert coordinator.handle(Joined("w"), 0.0) == []
    assert coordinator.handle(Tick(), 1.0) == []


def test_a_worker_that_asks_gets_a_self_contained_task() -> None:
    coordinator = begin(seed=7)
    command = send(coordinator, "w")
    task = command.task
    assert (task.version, task.offset, task.batch, task.steps) == (0, 0, 2, 5)
    assert task.seed == coordinator.units.units[task.shard].seed
    assert command.parameters.tolist() == [0, 0, 0]
    assert command.buffers.tolist() == [0, 0]
    assert coordinator.memory.ledger[task.shard].leased == 1


def test_the_order_of_shards_is_the_seeds() -> None:
    first = {send(begin(seed=seed), "w").task.shard for seed in range(20)}
    assert first == set(IDS)
    assert len({coordinator.units.units[IDS[0]].seed for coordinator in (begin(seed=s) for s in range(20))}) == 20


def test_each_worker_gets_a_shard_of_its_own_and_the_rest_waits() -> None:
    coordinator = begin()
    assert {send(coordinator, f"w{i}").task.shard for i in range(3)} == set(IDS)
    assert coordinator.handle(Asked("w3"), 0.0) == [Wait("w3")]


def test_an_accepted_answer_moves_the_parameters_and_the_ledger() -> None:
    coordinator = begin(Serial())
    task = send(coordinator, "w")
    (accepted,) = reply(coordinator, task)
    assert isinstance(accepted, Accepted)
    assert (accepted.worker, accepted.task, accepted.staleness) == ("w", task.task, 0)
    np.testing.assert_allclose(coordinator.parameters, -0.1, rtol=1e-6)
    assert coordinator.buffers.tolist() == [1, 1]
    entry = coordinator.memory.ledger[task.task.shard]
    assert (entry.steps, entry.samples, entry.accepted) == (5, 10, 1)
    assert coordinator.samples == 10


def test_staleness_counts_versions_since_the_task() -> None:
    coordinator = begin()
    tasks = [send(coordinator, f"w{i}") for i in range(3)]
    found = [reply(coordinator, task)[0].staleness for task in tasks]
    assert found == [0, 1, 2]


def test_a_waiting_worker_is_served_when_an_answer_opens_a_unit() -> None:
    coordinator = begin(shards=1)
    task = send(coordinator, "w")
    assert coordinator.handle(Asked("v"), 0.0) == [Wait("v")]
    accepted, next_task = reply(coordinator, task)
    assert isinstance(accepted, Accepted)
    assert isinstance(next_task, Send)
    assert (next_task.worker, next_task.task.offset) == ("v", 10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": float("nan")}, "its loss is nan"),
        ({"steps": 4}, "it reports 4 steps"),
        ({"delta": np.full(3, np.nan, np.float32)}, "its delta has NaN"),
        ({"delta": np.zeros(4, np.float32)}, r"shapes \(4,\) and \(2,\) do not fit the model"),
        ({"task": 99}, GONE[:20]),
    ],
)
def test_an_unusable_answer_is_rejected_with_its_reason_and_changes_nothing(
    change: dict[str, Any], reason: str
) -> None:
    coordinator = begin()
    task = send(coordinator, "w")
    state = wire.encode(*wire.pack(coordinator.state))
    (rejected,) = reply(coordinator, task, **change)
    assert isinstance(rejected, Rejected)
    assert re.match(reason, rejected.reason)
    assert wire.encode(*wire.pack(coordinator.state)) == state
    assert coordinator.buffers.tolist() == [0, 0]


def test_a_rejected_unit_is_offered_again_with_the_same_samples() -> None:
    coordinator = begin(shards=1)
    task = send(coordinator, "w")
    reply(coordinator, task, loss=float("inf"))
    again = send(coordinator, "v")
    assert (again.task.offset, again.task.shard) == (task.task.offset, task.task.shard)
    assert again.task.id != task.task.id


def test_a_second_answer_and_anothers_answer_are_rejected() -> None:
    coordinator = begin()
    task = send(coordinator, "w")
    assert reply(coordinator, task, worker="thief") == [Rejected("thief", task.task.id, GONE)]
    assert isinstance(reply(coordinator, task)[0], Accepted)
    before = wire.encode(*wire.pack(coordinator.state))
    assert reply(coordinator, task) == [Rejected("w", task.task.id, GONE)]
    assert wire.encode(*wire.pack(coordinator.state)) == before


def test_an_overdue_unit_is_offered_again_and_the_first_answer_wins() -> None:
    coordinator = begin(shards=1, pace=Pace(first=100.0))
    slow = send(coordinator, "slow")
    assert coordinator.handle(Asked("fast"), 99.0) == [Wait("fast")]
    (fast,) = coordinator.handle(Tick(), 101.0)
    assert isinstance(fast, Send)
    assert fast.task.offset == slow.task.offset
    assert isinstance(reply(coordinator, fast, 102.0)[0], Accepted)
    assert reply(coordinator, slow, 103.0) == [Rejected("slow", slow.task.id, "another worker answered first")]
    entry = coordinator.memory.ledger[IDS[0]]
    assert (entry.leased, entry.accepted, entry.rejected, entry.overdue) == (2, 1, 1, 1)
    assert coordinator.memory.misses == {}  # to be late is no sign that nothing works


def test_an_overdue_answer_that_comes_first_counts() -> None:
    coordinator = begin(shards=1, pace=Pace(first=100.0))
    slow = send(coordinator, "slow")
    fast = send(coordinator, "fast", 101.0)
    assert isinstance(reply(coordinator, slow, 102.0)[0], Accepted)
    assert reply(coordinator, fast, 103.0)[0] == Rejected("fast", fast.task.id, "another worker answered first")


def test_deadlines_follow_the_workers_own_speed() -> None:
    coordinator = begin(shards=1, pace=Pace(first=100.0, grace=10.0, speculate=False))
    reply(coordinator, send(coordinator, "w"), 5.0, seconds=5.0)  # a second a step
    send(coordinator, "w", 5.0)
    assert coordinator.handle(Asked("v"), 5 + 10 + 5 * 2 - 0.1) == [Wait("v")]
    assert coordinator.alarm == 5 + 10 + 5 * 2
    assert isinstance(coordinator.handle(Tick(), 5 + 10 + 5 * 2)[0], Send)


def test_a_failed_task_is_offered_again_and_a_strangers_failure_ignored() -> None:
    coordinator = begin(shards=1)
    task = send(coordinator, "w")
    assert coordinator.handle(Failed("thief", task.task.id, "x"), 1.0) == []
    assert coordinator.handle(Failed("w", 12345, "x"), 1.0) == []
    assert coordinator.memory.ledger[IDS[0]].failed == 0
    assert coordinator.handle(Failed("w", task.task.id, "no memory"), 1.0) == []
    assert coordinator.memory.ledger[IDS[0]].failed == 1
    assert send(coordinator, "v").task.offset == 0


@pytest.mark.parametrize("event", [Left("w"), Asked("w")])
def test_what_a_worker_held_when_it_left_or_asks_anew_is_lost_and_offered_again(event: Any) -> None:
    coordinator = begin(shards=1)
    task = send(coordinator, "w")
    coordinator.handle(Asked("v"), 0.0)
    commands = coordinator.handle(event, 1.0)
    assert [c.task.offset for c in commands if isinstance(c, Send)] == [0]
    assert coordinator.memory.ledger[IDS[0]].lost == 1
    assert reply(coordinator, task)[0] == Rejected("w", task.task.id, GONE)


def test_too_many_misses_stop_the_run_with_the_last_reason() -> None:
    coordinator = begin(patience=3)
    for _ in range(3):
        task = send(coordinator, "w")
        assert coordinator.handle(Failed("w", task.task.id, "no memory"), 0.0) == []
    task = send(coordinator, "w")
    (stopped,) = coordinator.handle(Failed("w", task.task.id, "no space"), 0.0)
    assert stopped == Stopped("4 answers in a row were unusable; the last one because no space")
    assert coordinator.handle(Asked("w"), 1.0) == []


def test_a_worker_that_always_fails_does_not_stop_a_run_while_another_computes() -> None:
    coordinator = begin(patience=3)
    good = send(coordinator, "good")
    for _ in range(20):
        task = send(coordinator, "bad")
        assert coordinator.handle(Failed("bad", task.task.id, "no memory"), 1.0) == []
    assert isinstance(reply(coordinator, good)[0], Accepted)
    for _ in range(20):
        task = send(coordinator, "bad")
        commands = coordinator.handle(Failed("bad", task.task.id, "no memory"), 1.0)
        if commands:
            break
    assert commands == [Stopped("5 answers in a row were unusable; the last one because no memory")]


def test_misses_are_counted_in_a_row_and_against_the_number_of_workers() -> None:
    coordinator = begin(patience=1, steps=1000)
    for i in range(4):
        coordinator.handle(Joined(f"idle{i}"), 0.0)
    for _ in range(3):
        for _ in range(10):  # 5 workers: up to 10 in a row
            task = send(coordinator, "w")
            assert not [c for c in reply(coordinator, task, loss=float("nan")) if isinstance(c, Stopped)]
        assert isinstance(reply(coordinator, send(coordinator, "w"))[0], Accepted)


def test_the_run_finishes_once_with_every_planned_step() -> None:
    coordinator, finished = begin(Serial()), []
    for _ in range(100):
        if coordinator.memory.done:
            break
        finished = [c for c in reply(coordinator, send(coordinator, "w")) if isinstance(c, Finished)]
    assert finished == [Finished()]
    assert coordinator.samples == coordinator.plan.budget == 120
    assert {entry.steps for entry in coordinator.memory.ledger.values()} == {20}
    assert coordinator.handle(Asked("w"), 9.0) == []


def test_a_task_is_cut_to_the_steps_that_are_left() -> None:
    coordinator = begin(Serial(), shards=1, steps=7, pace=Pace(probe=5))
    reply(coordinator, send(coordinator, "w"))
    assert send(coordinator, "w").task.steps == 2


def test_an_answer_to_a_finished_round_waits_for_no_one() -> None:
    coordinator = begin(ParallelSGD(rounds=4), shards=2)
    first = send(coordinator, "a")
    assert isinstance(reply(coordinator, first)[0], Accepted)
    second = send(coordinator, "a")
    assert second.task.shard != first.task.shard
    assert coordinator.handle(Asked("b"), 0.0) == [Wait("b")]
    commands = reply(coordinator, second)
    assert [type(c) for c in commands] == [Accepted, Send]
    assert coordinator.state.version == 1


def test_a_restart_forgets_workers_and_leases_and_never_repeats_a_number() -> None:
    coordinator = begin()
    before = {send(coordinator, f"w{i}").task.id for i in range(3)}
    old = send(coordinator, "w0")
    for session in (1, 2):
        assert coordinator.handle(Restarted(), 1.0) == []
        assert coordinator.memory.workers == {}
        assert coordinator.memory.leases == {}
        ids = {send(coordinator, f"w{i}", 2.0).task.id for i in range(3)}
        assert not ids & before
        assert {number >> 32 for number in ids} == {session}
        before |= ids
    assert reply(coordinator, old)[0] == Rejected("w0", old.task.id, GONE)
    assert sum(entry.lost for entry in coordinator.memory.ledger.values()) == 7


def test_a_restart_after_a_stop_goes_on() -> None:
    coordinator = begin(patience=0)
    for _ in range(3):
        coordinator.handle(Failed("w", send(coordinator, "w").task.id, "x"), 0.0)
        if coordinator.memory.done:
            break
    assert coordinator.memory.done
    coordinator.handle(Restarted(), 1.0)
    assert isinstance(reply(coordinator, send(coordinator, "w", 2.0), 3.0)[0], Accepted)


def test_a_saved_coordinator_continues_with_the_same_bits() -> None:
    one, two = begin(), begin()
    tasks = [send(one, f"w{i}") for i in range(3)]
    reply(one, tasks[1])
    two.restore(*wire.decode(wire.encode(*one.save()), Any))
    for coordinator in (one, two):
        reply(coordinator, tasks[0], delta=np.full(3, 0.3, np.float32))
        send(coordinator, "w1")
    assert wire.encode(*one.save()) == wire.encode(*two.save())


@pytest.mark.parametrize("tree", [None, [], {}, {"strategy": {}}, {"strategy": {}, "memory": {}}])
def test_what_is_no_saved_state_is_refused(tree: Any) -> None:
    with pytest.raises(MessageError):
        begin().restore(tree, {})


def test_another_strategys_state_is_refused() -> None:
    with pytest.raises(MessageError, match="does not fit"):
        begin(ParallelSGD()).restore(*begin(Serial()).save())


def test_a_task_whose_answer_was_doubted_goes_to_another_worker_and_is_then_believed() -> None:
    coordinator = begin(shards=1, steps=200, pace=Pace(speculate=False))
    for worker in ("fast", "c", "slow") * 2:
        reply(coordinator, send(coordinator, worker))
    sent = send(coordinator, "fast")
    assert coordinator.handle(Asked("c"), 2.0) == [Wait("c")]
    rejected, again = reply(coordinator, sent, delta=np.full(3, 50.0, np.float32))
    assert isinstance(rejected, Rejected)
    assert isinstance(again, Send)
    assert again.worker == "c"
    for worker in ("fast", "slow"):
        assert coordinator.handle(Asked(worker), 3.0) == [Wait(worker)]
    (again,) = coordinator.handle(Left("c"), 4.0)  # both wait, the fast one longer: but it gave the doubted answer
    assert isinstance(again, Send)
    assert (again.worker, again.task.offset) == ("slow", sent.task.offset)
    accepted, *_ = reply(coordinator, again, 5.0, delta=np.full(3, 50.0, np.float32))
    assert isinstance(accepted, Accepted)
