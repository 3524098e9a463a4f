"""Which answers reach a strategy, and the reasons of the others."""

import re
from typing import Any

import msgspec
import numpy as np
import pytest

from trainpool.admission import ENOUGH, WINDOW, Admission
from trainpool.messages import Recipe, Report, Task
from trainpool.vector import Layout

LAYOUT = Layout.of({"w": ((4,), "parameter"), "mean": ((2,), "running-mean")})
KNOWN = np.zeros(2, np.float32)


def task(steps: int = 4) -> Task:
    return Task(id=1, version=0, shard="ab", recipe=Recipe(), seed=0, offset=0, steps=steps, batch=3)


def judge(
    admission: Admission, length: float = 1.0, *, steps: int = 4, worker: str = "", alone: bool = False, **change: Any
) -> str | None:
    """The verdict on an answer whose delta has that norm."""
    report = Report(task=1, steps=steps, samples=3 * steps, loss=0.5, seconds=1.0)
    arrays = {"delta": np.full(4, length / 2, np.float32), "buffers": np.zeros(2, np.float32)}
    arrays |= {name: change.pop(name) for name in list(change) if name in arrays}
    report = msgspec.structs.replace(report, **change)
    return admission.judge(
        task(steps), report, arrays["delta"], arrays["buffers"], LAYOUT, known=KNOWN, worker=worker, alone=alone
    )


def ones(size: int, value: float = 0.5, place: int = 0) -> np.ndarray:
    array = np.full(size, 0.5, np.float32)
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples": 11}, "it reports 4 steps, 11 samples; the task had 4 steps"),
        ({"delta": ones(5)}, r"shapes \(5,\) and \(2,\) do not fit the model"),
        ({"delta": ones(4).reshape(2, 2)}, "do not fit the model"),
        ({"buffers": ones(3)}, "do not fit the model"),
        ({"delta": np.ones(4, np.int64)}, "types int64 and float32 are not the run's, float32"),
        ({"delta": np.full(4, 1e100)}, "types float64 and float32 are not the run's, float32"),
        ({"buffers": np.ones(2, np.complex64)}, "not the run's"),
        ({"delta": np.array(["a"] * 4)}, "not the run's"),
        ({"loss": float("nan")}, "its loss is nan"),
        ({"loss": float("-inf")}, "its loss is -inf"),
        ({"seconds": float("nan")}, "its seconds are nan"),
        ({"seconds": float("inf")}, "its seconds are inf"),
        ({"delta": ones(4, np.nan)}, "NaN or infinite"),
        ({"delta": ones(4, np.inf, 3)}, "NaN or infinite"),
        ({"delta": ones(4, 1e30, 2)}, "longer than 1e\\+09: did training diverge"),
        ({"delta": ones(4, 1.1e9, 2)}, "longer than 1e\\+09"),
        ({"buffers": ones(2, np.nan)}, "its buffer mean has elements that are NaN"),
        ({"buffers": ones(2, np.inf, 1)}, "its buffer mean has elements that are NaN"),
        ({"buffers": ones(2, 1e20, 1)}, "its buffer mean has elements that are NaN, infinite or out of range"),
    ],
)
def test_an_unusable_answer_is_refused_with_its_reason(change: dict[str, Any], reason: str) -> None:
    admission = Admission()
    verdict = judge(admission, **change)
    assert verdict is not None
    assert re.search(reason, verdict)
    assert admission.norms == []


def test_a_mask_may_stay_infinite_where_it_was() -> None:
    report, mask = Report(task=1, steps=4, samples=12, loss=0.5, seconds=1.0), np.array([-np.inf, 0], np.float32)
    layout = Layout.of({"w": ((4,), "parameter"), "mask": ((2,), "other")})

    def verdict(buffers: np.ndarray, known: np.ndarray, layout: Layout = layout) -> str | None:
        return Admission().judge(task(4), report, ones(4), buffers, layout, known=known)

    assert verdict(mask, mask) is None
    for wrong in (-mask, mask[::-1], mask * np.nan):
        assert verdict(wrong, mask) == "its buffer mask has elements that are NaN, infinite or out of range"
    assert verdict(mask * np.nan, mask * np.nan) is not None
    assert verdict(mask, mask, LAYOUT) is not None  # no running mean is infinite, whatever went before


def test_an_answer_with_another_number_of_steps_is_refused() -> None:
    report = Report(task=1, steps=5, samples=15, loss=0.5, seconds=1.0)
    verdict = Admission().judge(task(4), report, ones(4), ones(2), LAYOUT, known=KNOWN)
    assert verdict == "it reports 5 steps, 15 samples; the task had 4 steps"


def test_an_honest_answer_is_admitted_in_the_runs_precision() -> None:
    admission, report = Admission(), Report(task=1, steps=4, samples=12, loss=0.5, seconds=1.0)
    for kind in (np.float32, np.float64):
        assert (
            admission.judge(task(4), report, np.ones(4, kind), np.ones(2, kind), LAYOUT, known=np.zeros(2, kind))
            is None
        )
    assert len(admission.norms) == 2


def test_norms_are_judged_only_when_there_are_enough() -> None:
    admission = Admission()
    for _ in range(ENOUGH - 1):
        assert judge(admission) is None
    assert judge(admission, 1e6) is None
    assert judge(admission, 1e6) is not None


def test_a_norm_far_above_the_median_is_refused_and_forgotten() -> None:
    admission = Admission()
    for _ in range(ENOUGH):
        judge(admission)
    before = list(admission.norms)
    assert judge(admission, 19.9) is None
    admission.norms = before
    verdict = judge(admission, 20.1)
    assert verdict is not None
    assert verdict.startswith("its norm per root step")
    assert "over 20 times the median" in verdict
    assert admission.norms == before


def test_norms_are_compared_per_root_step() -> None:
    admission = Admission(limit=2.0)
    for _ in range(ENOUGH):
        judge(admission, 1.0, steps=1)
    assert judge(admission, 15.0, steps=100) is None
    assert judge(admission, 25.0, steps=100) is not None


def test_the_median_follows_a_slow_change() -> None:
    admission, length = Admission(limit=3.0), 1.0
    for _ in range(20 * WINDOW):
        assert judge(admission, length) is None
        length *= 1.02
    assert len(admission.norms) == WINDOW


def test_one_outlier_that_came_early_does_not_move_the_limit() -> None:
    admission = Admission()
    judge(admission, 1e6)
    for _ in range(ENOUGH):
        judge(admission)
    assert judge(admission, 1e3) is not None


def test_updates_that_move_nothing_set_no_limit() -> None:
    admission = Admission()
    for _ in range(2 * ENOUGH):
        assert judge(admission, 0.0) is None
    assert judge(admission) is None
    assert len(admission.norms) == 1


def test_a_long_answer_is_believed_when_another_worker_finds_the_same() -> None:
    admission = Admission()
    for _ in range(ENOUGH):
        judge(admission, worker="a")
    assert judge(admission, 100.0, worker="a") is not None
    assert judge(admission, 100.0, worker="a") is not None, "a worker is no witness for itself"
    assert judge(admission, 1000.0, worker="b") is not None, "two that differ confirm nothing"
    assert judge(admission, 900.0, worker="a") is None
    assert admission.doubts == {}


def test_a_worker_without_others_confirms_itself() -> None:
    admission = Admission()
    for _ in range(ENOUGH):
        judge(admission, worker="a")
    assert judge(admission, 100.0, worker="a", alone=True) is not None
    assert judge(admission, 100.0, worker="a", alone=True) is None
