"""How the coordinator keeps unequal workers busy: lengths, copies, bounds of staleness, partial answers."""

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from trainpool import wire
from trainpool.coordinator import Coordinator
from trainpool.events import Accepted, Asked, Failed, Joined, Left, Rejected, Restarted, Returned, Send, Tick, Wait
from trainpool.messages import Recipe, Report, ShardId, Update
from trainpool.pace import Pace
from trainpool.strategies import DiLoCo, Downpour, ParallelSGD, Plan
from trainpool.strategies.protocol import Assignment
from trainpool.vector import Layout, Vector

LAYOUT = Layout.of({"w": ((3,), "parameter")})
IDS = tuple(f"{number:02}" * 32 for number in range(20))


@dataclass(frozen=True)
class Sender(Downpour):
    """Downpour that sends what a test wants to see sent; a test's own, so it may inherit."""

    asynchronous: ClassVar[bool] = True
    flexible: bool = False
    limit: int | None = None
    rebased: bool = False
    warm_start: float = 0.0

    def assign(self, state: Any, shard: ShardId) -> Assignment:
        assignment = super().assign(state, shard)
        return msgspec.structs.replace(assignment, flexible=self.flexible, limit=self.limit, rebased=self.rebased)

    def merge(self, state: Any, shard: ShardId, update: Update) -> Any:
        seen.append(update)
        return super().merge(state, shard, update)


seen: list[Update] = []


def begin(strategy: Any, *, shards: int = 4, steps: int = 40, **options: Any) -> Coordinator:
    """A run of 10-sample shards in batches of 2."""
    seen.clear()
    plan = Plan.of(dict.fromkeys(IDS[:shards], 10), Recipe(batch_size=2, schedule="constant"), steps / 5)
    return Coordinator(strategy, plan, LAYOUT, np.zeros(3, np.float32), **options)


def send(coordinator: Coordinator, worker: str, now: float) -> Send:
    """The task for a worker that asks."""
    (command,) = [c for c in coordinator.handle(Asked(worker), now) if isinstance(c, Send) and c.worker == worker]
    return command


def reply(
    coordinator: Coordinator, sent: Send, now: float, seconds: float, steps: int = 0, size: float = 0.1
) -> list[Any]:
    """The commands that an answer causes; `steps` where it is partial."""
    steps = steps or sent.task.steps
    report = Report(task=sent.task.id, steps=steps, samples=steps * 2, loss=1.0, seconds=seconds)
    return coordinator.handle(Returned(sent.worker, report), now, np.full(3, size, np.float32), np.zeros(0, np.float32))


def measured(coordinator: Coordinator, **seconds: float) -> float:
    """Let each worker do a task at so many seconds a step; the time after that."""
    now = 0.0
    for worker, each in seconds.items():
        command = send(coordinator, worker, now)
        now += each * command.task.steps
        reply(coordinator, command, now, each * command.task.steps)
    return now


def test_a_flexible_task_is_cut_for_slower_workers() -> None:
    coordinator = begin(Sender(steps=8, flexible=True), pace=Pace(probe=2))
    now = measured(coordinator, fast=1.0, slow=4.0)
    lengths = {worker: send(coordinator, worker, now).task.steps for worker in ("fast", "slow", "new")}
    assert lengths == {"fast": 8, "slow": 2, "new": 2}


def test_an_exact_task_is_not() -> None:
    coordinator = begin(Sender(steps=8))
    now = measured(coordinator, fast=1.0, slow=4.0)
    assert [send(coordinator, worker, now).task.steps for worker in ("fast", "slow")] == [8, 8]


@pytest.mark.parametrize("flexible", [True, False])
def test_a_partial_answer_counts_where_it_is_welcome(flexible: bool) -> None:
    coordinator = begin(Sender(steps=8, flexible=flexible), shards=1, pace=Pace(probe=8))
    command = send(coordinator, "w", 0.0)
    assert command.task.partial is flexible
    (answer,) = reply(coordinator, command, 1.0, 1.0, steps=3)
    entry = coordinator.memory.ledger[IDS[0]]
    if flexible:
        assert isinstance(answer, Accepted)
        assert (entry.steps, entry.samples) == (3, 6)
        assert send(coordinator, "w", 1.0).task.offset == 6  # the rest is the next unit's
    else:
        assert isinstance(answer, Rejected)
        assert entry.steps == 0


def test_no_answer_may_have_more_steps_than_its_task() -> None:
    coordinator = begin(Sender(steps=8, flexible=True), pace=Pace(probe=8))
    assert isinstance(reply(coordinator, send(coordinator, "w", 0.0), 1.0, 1.0, steps=9)[0], Rejected)


@pytest.mark.parametrize("where", ["method", "pace"])
def test_an_answer_that_is_too_stale_is_refused_and_its_samples_are_trained_again(where: str) -> None:
    method = Sender(steps=4, limit=1 if where == "method" else None)
    coordinator = begin(method, pace=Pace(limit=1 if where == "pace" else None))
    old = send(coordinator, "slow", 0.0)
    for now in (1.0, 2.0):
        reply(coordinator, send(coordinator, "fast", now), now, 1.0)
    (refused,) = reply(coordinator, old, 3.0, 3.0)
    assert refused == Rejected("slow", old.task.id, "the model has moved on by 2 versions; 1 are allowed")
    assert coordinator.memory.misses == {}  # slowness is no sign that nothing works
    assert coordinator.memory.rejected == 1
    units = {send(coordinator, f"w{i}", 4.0).task.shard for i in range(4)}
    assert old.task.shard in units
    assert coordinator.memory.ledger[old.task.shard].samples == 0


def test_a_base_is_kept_while_a_task_needs_it() -> None:
    coordinator = begin(Sender(steps=4, rebased=True))
    first, second = (send(coordinator, worker, 0.0) for worker in "ab")
    carried: Vector = first.parameters.copy()
    reply(coordinator, first, 1.0, 1.0)
    assert seen[0].base is not None
    np.testing.assert_array_equal(seen[0].base, carried)
    assert list(coordinator.memory.bases) == [0]
    assert not np.array_equal(coordinator.parameters, carried)
    other = begin(Sender(steps=4, rebased=True))
    other.restore(*wire.decode(wire.encode(*coordinator.save()), Any))
    for each in (coordinator, other):
        reply(each, second, 2.0, 1.0)
        assert seen[-1].base is not None
        np.testing.assert_array_equal(seen[-1].base, carried)
        assert each.memory.bases == {}


def test_bases_of_lost_tasks_are_forgotten() -> None:
    coordinator = begin(Sender(steps=4, rebased=True))
    send(coordinator, "a", 0.0)
    coordinator.handle(Left("a"), 1.0)
    assert coordinator.memory.bases == {}
    assert reply(coordinator, send(coordinator, "b", 1.0), 2.0, 1.0)[0].staleness == 0


def test_an_idle_worker_copies_what_another_is_late_with() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=2)
    now = measured(coordinator, a=1.0, b=1.0)  # a round of 8 steps each
    first, second = (send(coordinator, worker, now) for worker in "ab")
    reply(coordinator, first, now + 8, 8.0)
    assert coordinator.handle(Asked("a"), now + 8) == [Wait("a")]
    assert coordinator.alarm == now + 16
    assert coordinator.handle(Tick(), now + 15.9) == []
    (copy,) = coordinator.handle(Tick(), now + 16)
    assert isinstance(copy, Send)
    assert (copy.task.shard, copy.task.offset, copy.task.steps) == (second.task.shard, second.task.offset, 8)
    assert coordinator.memory.copies == 1
    coordinator.handle(Joined("c"), now + 17)
    assert coordinator.handle(Asked("c"), now + 17) == [Wait("c")]  # one copy is enough
    assert isinstance(reply(coordinator, copy, now + 20, 4.0)[0], Accepted)
    assert reply(coordinator, second, now + 21, 21.0)[0].reason == "another worker answered first"


def test_an_idle_worker_copies_what_it_would_have_done_much_sooner() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=2)
    now = measured(coordinator, a=1.0, b=5.0)
    first, _ = (send(coordinator, worker, now) for worker in "ab")  # b needs 40 s
    reply(coordinator, first, now + 8, 8.0)
    (copy,) = coordinator.handle(Asked("a"), now + 8)
    assert isinstance(copy, Send)  # a is done at 16 s


def test_nothing_is_copied_where_speculation_is_off() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=2, pace=Pace(speculate=False))
    now = measured(coordinator, a=1.0, b=5.0)
    first, _ = (send(coordinator, worker, now) for worker in "ab")
    reply(coordinator, first, now + 8, 8.0)
    assert coordinator.handle(Asked("a"), now + 8) == [Wait("a")]


def test_the_fastest_of_the_waiting_workers_is_served_first() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=2, pace=Pace(speculate=False))
    now = measured(coordinator, slow=5.0, fast=1.0)
    one, two = (send(coordinator, worker, now) for worker in ("slow", "fast"))
    reply(coordinator, two, now + 8, 8.0)
    coordinator.handle(Asked("new"), now + 9)
    coordinator.handle(Asked("fast"), now + 10)
    sent = [c for c in reply(coordinator, one, now + 40, 40.0) if isinstance(c, Send)]
    assert [c.worker for c in sent] == ["fast", "new"]


def test_a_unit_is_left_to_a_faster_worker_that_is_about_to_ask() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=1, steps=400, pace=Pace(speculate=False))
    now = measured(coordinator, slow=5.0, fast=1.0)
    command = send(coordinator, "fast", now)
    assert coordinator.handle(Asked("slow"), now) == [Wait("slow")]
    assert [type(c) for c in reply(coordinator, command, now + 80, 80.0)] == [Accepted]
    assert coordinator.alarm == now + 81  # it may have gone
    command = send(coordinator, "fast", now + 80)
    reply(coordinator, command, now + 160, 80.0)
    (given,) = coordinator.handle(Tick(), now + 161)
    assert isinstance(given, Send)
    assert given.worker == "slow"


def test_a_new_worker_comes_before_a_known_one_that_is_about_to_ask() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=1, pace=Pace(speculate=False))
    now = measured(coordinator, known=1.0)
    command = send(coordinator, "known", now)
    coordinator.handle(Asked("new"), now)
    assert [c.worker for c in reply(coordinator, command, now + 8, 8.0) if isinstance(c, Send)] == ["new"]


def test_a_worker_that_is_overtaken_before_its_speed_is_known_is_known_afterwards() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=3)
    now = measured(coordinator, fast=1.0)
    slow, fast = send(coordinator, "slow", now), send(coordinator, "fast", now)
    reply(coordinator, fast, now + 8, 8.0)
    coordinator.handle(Asked("fast"), now + 8)
    (copy,) = coordinator.handle(Tick(), coordinator.alarm)  # as slow as the slowest known one it is not
    assert isinstance(reply(coordinator, copy, now + 24, 8.0)[0], Accepted)
    assert isinstance(reply(coordinator, slow, now + 1000, 80.0)[0], Rejected)
    assert coordinator.memory.pace.step_seconds("slow") == 10.0
    assert coordinator.memory.pace.allowance("slow", 1) == 30 + 2 * 10.0  # that it was overdue does not lengthen it


def test_all_late_units_are_copied_at_once() -> None:
    coordinator = begin(ParallelSGD(rounds=5), shards=20, steps=40)
    names = [f"w{number}" for number in range(20)]
    now = measured(coordinator, **dict.fromkeys(names, 1.0))
    sent = [send(coordinator, name, now) for name in names]
    for command in sent[:10]:
        reply(coordinator, command, now + 8, 8.0)
        assert coordinator.handle(Asked(command.worker), now + 8) == [Wait(command.worker)]
    copies = coordinator.handle(Tick(), coordinator.alarm)
    assert len([copy for copy in copies if isinstance(copy, Send)]) == 10


def test_a_report_may_not_claim_other_samples_than_its_steps() -> None:
    coordinator = begin(Sender(steps=8, flexible=True), pace=Pace(probe=8))
    sent = send(coordinator, "w", 0.0)
    report = Report(task=sent.task.id, steps=4, samples=16, loss=1.0, seconds=1.0)
    commands = coordinator.handle(Returned("w", report), 1.0, np.zeros(3, np.float32), np.zeros(0, np.float32))
    assert isinstance(commands[0], Rejected)


@pytest.mark.parametrize("copies", [True, False])
def test_a_fast_worker_that_says_nothing_any_more_does_not_set_the_length_of_tasks(copies: bool) -> None:
    coordinator = begin(DiLoCo(steps=8), shards=2, steps=400, pace=Pace(probe=8, grace=1.0, speculate=copies))
    now = measured(coordinator, fast=0.1, slow=1.0)
    long, short = (send(coordinator, worker, now) for worker in ("fast", "slow"))
    assert (long.task.steps, short.task.steps) == (8, 1)
    reply(coordinator, short, now + 1, 1.0)
    assert coordinator.handle(Asked("slow"), now + 1) == [Wait("slow")]
    (other,) = coordinator.handle(Tick(), now + 10)  # late, and overdue
    assert isinstance(other, Send)
    assert other.task.steps == 8
    reply(coordinator, other, now + 18, 8.0)
    assert send(coordinator, "slow", now + 18).task.steps == 8
    assert coordinator.memory.silent == {"fast": None}
    assert send(coordinator, "fast", now + 19).task.steps == 8  # and back again
    assert coordinator.memory.silent == {}


def partial(**options: Any) -> Coordinator:
    """A run whose rounds are of those who are there."""
    method = DiLoCo(learning_rate=0.5, momentum=0.0, steps=4, flexible=False, participation="partial")
    return begin(method, **options)


def test_a_partial_round_ends_with_the_mean_of_those_who_took_part_and_the_next_begins_with_the_others() -> None:
    coordinator = partial(shards=3)
    first = [send(coordinator, worker, 0.0) for worker in "ab"]
    reply(coordinator, first[0], 4.0, 4.0, size=0.1)
    assert coordinator.handle(Asked("a"), 4.0) == [Wait("a")]  # the third shard is the next round's
    assert coordinator.handle(Asked("late"), 5.0) == [Wait("late")]
    assert coordinator.state.version == 0
    commands = reply(coordinator, first[1], 6.0, 6.0, size=0.3)
    np.testing.assert_allclose(coordinator.parameters, -0.5 * (0.1 + 0.3) / 2, rtol=1e-6)
    assert coordinator.state.version == 1
    second = [command for command in commands if isinstance(command, Send)] + [send(coordinator, "b", 6.0)]
    (left_out,) = set(IDS[:3]) - {command.task.shard for command in first}
    assert left_out in {command.task.shard for command in second}
    assert [command.task.version for command in second] == [1, 1, 1]


@pytest.mark.parametrize("goes", ["left", "failed", "silent", "refused"])
def test_a_partial_round_does_not_wait_for_who_goes(goes: str) -> None:
    coordinator = partial(shards=2, pace=Pace(grace=1.0, speculate=False))
    measured(coordinator, a=1.0)
    assert coordinator.state.version == 0  # nobody looked yet whether it is over
    first = [send(coordinator, worker, 10.0) for worker in "ab"]
    assert coordinator.state.version == 1
    reply(coordinator, first[0], 14.0, 4.0)
    assert coordinator.handle(Asked("a"), 14.0) == [Wait("a")]
    match goes:
        case "left":
            commands = coordinator.handle(Left("b"), 15.0)
        case "failed":
            commands = coordinator.handle(Failed("b", first[1].task.id, "it broke"), 15.0)
        case "silent":
            commands = coordinator.handle(Tick(), coordinator.alarm)
        case _:
            commands = reply(coordinator, first[1], 15.0, 4.0, size=float("nan"))
    (again,) = [command for command in commands if isinstance(command, Send)]
    assert (again.worker, again.task.version) == ("a", 2)
    if goes == "silent":  # what it began in an earlier round is of no use in this one
        (refused,) = reply(coordinator, first[1], 16.0, 4.0)
        assert isinstance(refused, Rejected)
    assert coordinator.memory.samples == 16


def test_a_partial_round_gives_up_who_is_late_and_a_refused_answer_tells_its_speed() -> None:
    coordinator = begin(DiLoCo(steps=8, participation="partial"), shards=2, steps=400, pace=Pace(probe=8))
    now = measured(coordinator, fast=1.0, slow=2.0)
    fast, slow = (send(coordinator, worker, now) for worker in ("fast", "slow"))
    assert (fast.task.steps, slow.task.steps) == (8, 4)
    reply(coordinator, fast, now + 8, 8.0)
    assert coordinator.handle(Asked("fast"), now + 8) == [Wait("fast")]
    assert coordinator.alarm == now + 16
    (again,) = coordinator.handle(Tick(), coordinator.alarm)
    assert isinstance(again, Send)
    assert again.task.version == fast.task.version + 1
    assert coordinator.memory.copies == 0
    (refused,) = reply(coordinator, slow, now + 40, 40.0)
    assert refused == Rejected("slow", slow.task.id, "the model has moved on by 1 versions; 0 are allowed")
    assert coordinator.memory.pace.step_seconds("slow") == 10.0
    assert send(coordinator, "slow", now + 40).task.steps == 1


def test_a_partial_round_of_which_nothing_came_goes_on_with_others() -> None:
    coordinator = partial(shards=2)
    lost = send(coordinator, "a", 0.0)
    coordinator.handle(Left("a"), 1.0)
    shards = {send(coordinator, worker, 2.0).task.shard for worker in "bc"}
    assert lost.task.shard in shards
    assert coordinator.state.version == 0


def test_a_partial_round_that_a_restart_broke_off_takes_on_workers_again() -> None:
    coordinator = partial(shards=3)
    sent = [send(coordinator, worker, 0.0) for worker in "ab"]
    reply(coordinator, sent[0], 4.0, 4.0)
    coordinator.handle(Restarted(), 5.0)
    assert {send(coordinator, worker, 6.0).task.version for worker in "ab"} == {0}
    assert coordinator.handle(Asked("c"), 6.0) == [Wait("c")]  # the third has answered


def test_the_only_worker_left_may_confirm_its_own_long_update() -> None:
    coordinator = begin(Sender(steps=4), pace=Pace(grace=1.0))
    send(coordinator, "gone", 0.0)
    for number in range(6):
        reply(coordinator, send(coordinator, "w", float(number)), number + 0.5, 0.5)
    coordinator.handle(Tick(), 1000.0)
    assert list(coordinator.memory.silent) == ["gone"]
    answers = [reply(coordinator, send(coordinator, "w", 1001.0), 1002.0, 1.0, size=1e4)[0] for _ in range(2)]
    assert [type(answer) for answer in answers] == [Rejected, Accepted]


def test_a_doubted_worker_that_is_idle_alone_gets_another_task_until_another_has_done_its_own() -> None:
    coordinator = begin(Sender(steps=4))
    now = 0.0
    for _ in range(3):
        for worker in "ab":
            reply(coordinator, send(coordinator, worker, now), now + 1, 1.0)
            now += 1
    held = send(coordinator, "b", now)
    doubted = send(coordinator, "a", now)
    assert isinstance(reply(coordinator, doubted, now + 1, 1.0, size=1e4)[0], Rejected)
    other = send(coordinator, "a", now + 1)
    assert other.task.shard not in (doubted.task.shard, held.task.shard)
    reply(coordinator, held, now + 2, 2.0)
    again = send(coordinator, "b", now + 2)
    assert (again.task.shard, again.task.offset) == (doubted.task.shard, doubted.task.offset)
    assert isinstance(reply(coordinator, again, now + 3, 1.0, size=1e4)[0], Accepted)


def test_a_doubted_worker_gets_its_task_again_when_nobody_else_will_ask() -> None:
    coordinator = begin(Sender(steps=4), shards=1)
    coordinator.handle(Joined("quiet"), 0.0)
    for now in range(6):
        reply(coordinator, send(coordinator, "a", float(now)), now + 1.0, 1.0)
    doubted = send(coordinator, "a", 6.0)
    assert isinstance(reply(coordinator, doubted, 7.0, 1.0, size=1e4)[0], Rejected)
    assert send(coordinator, "a", 7.0).task.offset == doubted.task.offset


def test_a_slow_worker_of_an_asynchronous_method_is_known_after_its_first_stale_answer() -> None:
    coordinator = begin(Sender(steps=8, flexible=True, limit=1), pace=Pace(probe=2))
    old = send(coordinator, "slow", 0.0)
    for now in (1.0, 2.0):
        reply(coordinator, send(coordinator, "fast", now), now + 1, 1.0)
    assert isinstance(reply(coordinator, old, 8.0, 8.0)[0], Rejected)
    assert coordinator.memory.pace.step_seconds("slow") == 4.0
    assert send(coordinator, "slow", 8.0).task.steps == 1


def test_no_worker_computed_longer_than_its_task_was_away() -> None:
    coordinator = begin(Sender(steps=4))
    reply(coordinator, send(coordinator, "w", 0.0), 2.0, 1e308)
    assert coordinator.memory.pace.step_seconds("w") == (2.0 + 30.0) / 4  # and the grace
