"""Layouts and flat vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainpool.errors import MessageError
from trainpool.vector import CHUNK, ROW, Layout, Role, TensorSpec, chunks, norm, square

SHAPES: dict[str, tuple[tuple[int, ...], Role]] = {
    "mean": ((3,), "running-mean"),
    "weight": ((2, 3), "parameter"),
    "count": ((), "counter"),
    "bias": ((3,), "parameter"),
    "empty": ((0, 4), "other"),
}


def test_parameters_come_first_and_otherwise_the_order_stays() -> None:
    layout = Layout.of(SHAPES)
    assert layout.tensors == (
        TensorSpec("weight", (2, 3), 0),
        TensorSpec("bias", (3,), 6),
        TensorSpec("mean", (3,), 9, "running-mean"),
        TensorSpec("count", (), 12, "counter"),
        TensorSpec("empty", (0, 4), 13, "other"),
    )
    assert (layout.size, layout.trainable) == (13, 9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_views_share_the_vectors_memory(dtype: type) -> None:
    vector = np.arange(13, dtype=dtype)
    views = Layout.of(SHAPES).views(vector)
    assert {name: view.shape for name, view in views.items()} == {name: shape for name, (shape, _) in SHAPES.items()}
    views["bias"][1] = -1
    views["count"][...] = -2
    assert (vector[7], vector[12]) == (-1, -2)
    assert all(view.dtype == dtype for view in views.values())


@pytest.mark.parametrize("shape", [(12,), (14,), (13, 1), ()])
def test_a_vector_of_another_shape_has_no_views(shape: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match="does not fit a layout of 13 elements"):
        Layout.of(SHAPES).views(np.zeros(shape))


@given(st.integers(0, 5 * CHUNK))
def test_chunks_cover_a_range_in_order(size: int) -> None:
    parts = list(chunks(size))
    assert [index for part in parts for index in (part.start, part.stop)] == [
        index for start in range(0, size, CHUNK) for index in (start, min(start + CHUNK, size))
    ]
    assert sum(part.stop - part.start for part in parts) == size


@pytest.mark.parametrize("size", [0, 1, ROW - 1, ROW, ROW + 1, 5 * ROW + 77])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_the_norm_is_euclids(size: int, dtype: type, tolerance: float) -> None:
    vector = np.random.default_rng(0).normal(size=size).astype(dtype)
    expected = float(np.sqrt((vector.astype(np.float64) ** 2).sum()))
    assert norm(vector) == pytest.approx(expected, rel=tolerance)
    assert square(vector) == pytest.approx(expected**2, rel=tolerance)


@pytest.mark.parametrize("place", [0, ROW, 3 * ROW + 5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_the_norm_shows_what_is_not_finite_or_overflows(place: int, value: float) -> None:
    vector = np.ones(3 * ROW + 10, np.float32)
    vector[place] = value
    assert not np.isfinite(norm(vector))
