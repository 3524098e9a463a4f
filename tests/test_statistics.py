"""Merging BatchNorm's buffers: exact where an average of variances is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainpool.statistics import Reported, Statistics, flaw, pooled
from trainpool.vector import Layout

FEATURES = 5
LAYOUT = Layout.of(
    {
        "norm.weight": ((FEATURES,), "parameter"),
        "norm.running_mean": ((FEATURES,), "running-mean"),
        "norm.running_var": ((FEATURES,), "running-var"),
        "norm.num_batches_tracked": ((), "counter"),
        "mask": ((2,), "other"),
    }
)


def report(x: np.ndarray, count: int = 0, mask: float = 0.0) -> Reported:
    """The buffers of a shard that saw `x`, `[samples, FEATURES]`."""
    buffers = np.concatenate([x.mean(0), x.var(0), [count], [mask, mask]])
    return Reported(len(x), buffers)


def parts(sizes: list[int], seed: int = 0) -> list[np.ndarray]:
    """Samples of shards whose means differ."""
    generator = np.random.default_rng(seed)
    return [generator.normal(number * 0.3, 1 + number, (size, FEATURES)) for number, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_means_and_variances_are_those_of_all_samples_together_tolerance_1e_12(sizes: list[int]) -> None:
    shards = parts(sizes)
    merged = pooled(LAYOUT, {str(i): report(x) for i, x in enumerate(shards)})
    together = np.concatenate(shards)
    np.testing.assert_allclose(merged[:FEATURES], together.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(merged[FEATURES : 2 * FEATURES], together.var(0), rtol=1e-12, atol=1e-12)


def test_the_mean_of_the_variances_would_not_be() -> None:
    shards = parts([20, 20, 20])
    naive = np.mean([x.var(0) for x in shards], axis=0)
    assert abs(naive - np.concatenate(shards).var(0)).max() > 1e-2


def test_unweighted_means_would_not_be() -> None:
    shards = parts([10, 30])
    naive = np.mean([x.mean(0) for x in shards], axis=0)
    assert abs(naive - np.concatenate(shards).mean(0)).max() > 1e-2


def test_counters_merge_by_maximum_and_other_buffers_come_from_the_most_samples() -> None:
    small, large = parts([5, 9])
    merged = pooled(LAYOUT, {"a": report(small, 40, 1.0), "b": report(large, 12, 2.0)})
    assert merged[2 * FEATURES] == 40
    assert merged[2 * FEATURES + 1 :].tolist() == [2.0, 2.0]


def test_a_variance_without_a_mean_before_it_is_averaged() -> None:
    layout = Layout.of({"mean": ((2,), "running-mean"), "var": ((3,), "running-var"), "again": ((2,), "running-var")})
    rows = [np.array([0.0, 0, 1, 1, 1, 4, 4]), np.array([8.0, 8, 3, 3, 3, 6, 6])]
    merged = pooled(layout, {str(i): Reported(1, row) for i, row in enumerate(rows)})
    assert merged.tolist() == [4, 4, 2, 2, 2, 5, 5]


def test_the_order_of_arrival_changes_no_bit() -> None:
    reports = {str(i): report(x) for i, x in enumerate(parts([3, 8, 5, 13]))}
    backwards = dict(reversed(reports.items()))
    assert pooled(LAYOUT, reports).tobytes() == pooled(LAYOUT, backwards).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_is_kept(dtype: type) -> None:
    reports = {"a": Reported(4, np.ones(2 * FEATURES + 3, dtype)), "b": Reported(5, np.ones(2 * FEATURES + 3, dtype))}
    assert pooled(LAYOUT, reports).dtype == dtype


def test_updates_of_the_newest_version_are_pooled_and_older_ones_ignored() -> None:
    first, second, third = (report(x) for x in parts([4, 6, 8]))
    statistics = Statistics(np.zeros(2 * FEATURES + 3))
    statistics.merge(LAYOUT, 0, "a", first.samples, first.buffers)
    statistics.merge(LAYOUT, 0, "b", second.samples, second.buffers)
    np.testing.assert_array_equal(statistics.buffers, pooled(LAYOUT, {"a": first, "b": second}))
    statistics.merge(LAYOUT, 2, "a", third.samples, third.buffers)
    np.testing.assert_array_equal(statistics.buffers, pooled(LAYOUT, {"a": third}))
    statistics.merge(LAYOUT, 1, "b", second.samples, second.buffers)
    np.testing.assert_array_equal(statistics.buffers, pooled(LAYOUT, {"a": third}))


def test_the_callers_memory_is_not_kept() -> None:
    one = report(parts([4])[0])
    statistics = Statistics(np.zeros(2 * FEATURES + 3))
    statistics.merge(LAYOUT, 0, "a", one.samples, one.buffers)
    one.buffers[:] = np.nan
    statistics.merge(LAYOUT, 0, "b", 4, report(parts([4])[0]).buffers)
    assert np.isfinite(statistics.buffers).all()


def test_a_model_without_buffers_has_none() -> None:
    layout = Layout.of({"w": ((3,), "parameter")})
    statistics = Statistics(np.zeros(0, np.float32))
    statistics.merge(layout, 0, "a", 4, np.zeros(0, np.float32))
    assert statistics.buffers.size == 0


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [
        (0, 1e20, "norm.running_mean"),
        (0, -1e20, "norm.running_mean"),
        (FEATURES, -1e-9, "norm.running_var"),
        (FEATURES, 3e38, "norm.running_var"),
        (FEATURES, np.nan, "norm.running_var"),
        (2 * FEATURES, np.inf, "norm.num_batches_tracked"),
        (2 * FEATURES + 1, np.inf, "mask"),
    ],
)
def test_buffers_that_cannot_be_merged_are_named(place: int, value: float, name: str) -> None:
    buffers = report(parts([20])[0]).buffers.astype(np.float32)
    assert flaw(LAYOUT, buffers, buffers) is None
    known = buffers.copy()
    buffers[place] = value
    assert flaw(LAYOUT, buffers, known) == f"its buffer {name} has elements that are NaN, infinite or out of range"


def test_a_mask_may_be_infinite_where_it_was() -> None:
    buffers = report(parts([20])[0], mask=-np.inf).buffers
    assert flaw(LAYOUT, buffers, buffers) is None
    assert flaw(LAYOUT, buffers, -buffers) is not None


def test_whatever_can_be_merged_gives_a_finite_variance() -> None:
    most = float(np.finfo(np.float32).max)
    far = np.array([[most**0.5 / 4] * FEATURES + [most / 4] * FEATURES + [0, 0, 0]], np.float32).repeat(2, 0)
    far[1, :FEATURES] *= -1
    assert all(flaw(LAYOUT, each, each) is None for each in far)
    assert np.isfinite(pooled(LAYOUT, {str(i): Reported(1, each) for i, each in enumerate(far)})).all()
