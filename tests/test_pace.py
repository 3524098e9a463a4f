"""Speeds, task lengths and deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainpool.pace import REMEMBERED, WINDOW, Pace


def test_the_first_task_of_a_worker_probes() -> None:
    pace = Pace(target=2.0, probe=5)
    assert pace.steps("new") == 5
    assert pace.step_seconds("new") is None


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 200), (0.3, 7), (1.9, 1), (50.0, 1)])
def test_later_tasks_last_as_long_as_wanted_but_have_a_step(seconds: float, steps: int) -> None:
    pace = Pace(target=2.0)
    pace.record("w", 5 * seconds, 5)
    assert pace.step_seconds("w") == pytest.approx(seconds)
    assert pace.steps("w") == steps


def test_one_hiccup_does_not_change_the_estimate() -> None:
    pace = Pace()
    for seconds in (1.0, 1.0, 60.0, 1.0):
        pace.record("w", seconds, 10)
    assert pace.step_seconds("w") == pytest.approx(0.1)


def test_the_estimate_follows_a_machine_that_slows_down() -> None:
    pace = Pace()
    for seconds in [1.0] * 20 + [3.0] * WINDOW:
        pace.record("w", seconds, 10)
    assert pace.step_seconds("w") == pytest.approx(0.3)
    assert len(pace.measured["w"].steps) == WINDOW


def test_a_worker_that_left_is_known_again_when_it_comes_back() -> None:
    pace = Pace()
    pace.record("w", 1.0, 10)
    pace.left("w")
    pace.left("never there")
    assert pace.measured == {}
    assert pace.steps("w") == pace.probe
    pace.joined("w")
    pace.joined("never there")
    assert pace.step_seconds("w") == pytest.approx(0.1)


def test_of_workers_that_left_only_so_many_are_remembered() -> None:
    pace = Pace()
    for number in range(REMEMBERED + 5):
        pace.record(f"w{number}", 1.0, 10)
        pace.left(f"w{number}")
    assert len(pace.absent) == REMEMBERED
    assert "w4" not in pace.absent


def test_a_task_of_free_length_counts_the_transfer_but_never_mostly_transfers() -> None:
    pace = Pace(target=2.0)
    pace.record("near", 1.0, 10, elapsed=1.5)
    pace.record("far", 1.0, 10, elapsed=6.0)
    assert pace.steps("near") == 15  # 1.5 s at 0.1 s a step
    assert pace.steps("far") == 50  # as long as the transfer


def test_flexible_tasks_last_as_long_as_the_fastest_workers() -> None:
    pace = Pace(probe=3)
    for worker, seconds in (("fast", 1.0), ("half", 2.0), ("slow", 30.0)):
        pace.record(worker, seconds, 10)
    assert [pace.fit(worker, 8) for worker in ("fast", "half", "slow")] == [8, 4, 1]
    assert [pace.fit("new", steps) for steps in (8, 60, 1000)] == [1, 2, 3]  # as the slowest, and never over the probe
    pace.record("far", 1.0, 10, elapsed=1.4)  # as fast, but 0.4 s of transfer
    assert pace.fit("far", 8) == 4
    for _ in range(9):
        pace.record("far", 1.0, 10)  # late answers: they say nothing of the way
    assert pace.fit("far", 8) == 4


def test_equal_workers_get_every_step_of_a_flexible_task() -> None:
    pace = Pace()
    for worker in "ab":
        pace.record(worker, 0.7, 7)
    assert {pace.fit(worker, steps) for worker in "ab" for steps in (1, 3, 49)} == {1, 3, 49}


def test_the_fastest_worker_may_slow_down_leave_and_come_back() -> None:
    pace = Pace()
    pace.record("a", 1.0, 10)
    pace.record("b", 2.0, 10)
    assert pace.fit("b", 10) == 5
    for _ in range(WINDOW):
        pace.record("a", 8.0, 10)
    assert (pace.fit("a", 8), pace.fit("b", 8)) == (2, 8)
    pace.left("b")
    assert pace.fit("a", 8) == 8
    pace.joined("b")
    assert pace.fit("a", 8) == 2


def test_while_nobody_is_known_the_first_allowance_holds() -> None:
    assert Pace(first=123.0).allowance("w", 1000) == 123.0


def test_a_steady_worker_may_take_twice_its_time_and_the_grace() -> None:
    pace = Pace(grace=30.0)
    for _ in range(3):
        pace.record("w", 1.0, 10)
    assert pace.allowance("w", 50) == pytest.approx(30 + 50 * 0.2)


def test_an_uneven_worker_may_take_longer() -> None:
    pace = Pace(grace=0.0, spread=6.0)
    for seconds in (1.0, 2.0, 3.0):
        pace.record("w", seconds, 1)
    assert pace.allowance("w", 10) == pytest.approx(10 * (2 + 6 * 1))


def test_an_unknown_worker_may_be_as_slow_as_the_slowest_known() -> None:
    pace = Pace(grace=5.0)
    pace.record("fast", 1.0, 100)
    pace.record("slow", 10.0, 10)
    assert pace.allowance("new", 3) == pytest.approx(5 + 3 * 2)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(1, 10**6)), max_size=20))
def test_any_report_leaves_positive_finite_numbers(reports: list[tuple[float, int]]) -> None:
    pace = Pace()
    for seconds, steps in reports:
        pace.record("w", seconds, steps)
    assert pace.steps("w") >= 1
    assert 0 < pace.allowance("w", 10) < float("inf")


def test_who_is_the_slowest_may_speed_up_leave_and_come_back() -> None:
    pace = Pace(grace=0.0)
    pace.record("fast", 1.0, 10)
    pace.record("slept", 28_800.0, 10)  # eight hours, with the lid closed
    assert pace.allowance("new", 10) == 2 * 28_800
    pace.left("slept")
    assert pace.allowance("new", 10) == 2
    assert pace.expected("new", 10) == 1
    pace.joined("slept")
    assert pace.allowance("new", 10) == 2 * 28_800
    for _ in range(WINDOW):
        pace.record("slept", 2.0, 10)
    assert pace.allowance("new", 10) == 4
    pace.record("slower", 3.0, 10)
    assert pace.allowance("new", 10) == 6
    for worker in ("fast", "slept", "slower"):
        pace.left(worker)
    assert (pace.expected("new", 10), pace.allowance("new", 10)) == (None, pace.first)
