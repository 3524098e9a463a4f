"""Speeds, task lengths and deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainpool.pace import WINDOW, Pace


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
    assert len(pace.measured["w"]) == WINDOW


def test_a_worker_that_left_is_unknown_again() -> None:
    pace = Pace()
    pace.record("w", 1.0, 10)
    pace.forget("w")
    pace.forget("never there")
    assert pace.measured == {}
    assert pace.steps("w") == pace.probe


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
