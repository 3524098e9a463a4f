"""The counter-based generator: known answers, and batches that miss no row."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainpool import rng
from trainpool.rng import Key


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_random123s_known_answers(
    counter: tuple[int, int], key: tuple[int, int], answer: tuple[int, int]
) -> None:
    c0, c1 = (np.array([word], np.uint32) for word in counter)
    x0, x1 = rng.threefry(Key(*key), c0, c1)
    assert (int(x0[0]), int(x1[0])) == answer
    assert (int(c0[0]), int(c1[0])) == counter


def test_a_key_is_the_low_and_the_high_word_of_the_seeds_low_64_bits() -> None:
    assert rng.key(0x1_23456789_ABCDEF01) == Key(0xABCDEF01, 0x23456789)


@given(st.integers(0, 2**40), st.integers(1, 50), st.integers(0, 50))
def test_any_part_of_a_stream_can_be_computed_alone(start: int, count: int, skip: int) -> None:
    k = rng.key(7)
    whole = rng.bits(k, start, skip + count)
    np.testing.assert_array_equal(rng.bits(k, start + skip, count), whole[skip:])


def test_streams_go_on_after_two_to_the_32_elements() -> None:
    seam = rng.bits(rng.key(3), 2**32 - 2, 4)
    assert len(set(seam.tolist()) | set(rng.bits(rng.key(3), 0, 2).tolist())) == 6


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), max_size=3))
def test_a_derived_seed_is_exact_in_a_float64(seed: int, data: list[int]) -> None:
    derived = rng.derive(seed, *data)
    assert 0 <= derived < 2**53
    assert int(float(derived)) == derived


def test_folding_gives_streams_of_their_own() -> None:
    k = rng.key(1)
    folded = {rng.fold(k, data) for data in range(1000)}
    assert len(folded) == 1000
    assert rng.fold(rng.fold(k, 1), 2) != rng.fold(rng.fold(k, 2), 1)


def test_uniform_numbers_lie_in_0_to_1_and_are_spread_evenly() -> None:
    u = rng.uniform(rng.key(5), 0, 100_000)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    counts, _ = np.histogram(u, 20, (0, 1))
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_a_permutation_has_every_number_once(seed: int, n: int) -> None:
    assert sorted(rng.permutation(rng.key(seed), n).tolist()) == list(range(n))


@given(
    seed=st.integers(0, 2**53 - 1),
    samples=st.integers(1, 40),
    batch=st.integers(1, 50),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=8),
)
def test_tasks_of_any_cutting_visit_every_row_once_a_pass(seed: int, samples: int, batch: int, cuts: list[int]) -> None:
    rows: list[int] = []
    for steps in cuts:
        parts = list(rng.batches(seed, samples, len(rows), steps, batch))
        assert [part.shape for part in parts] == [(batch,)] * steps
        rows += np.concatenate(parts).tolist()
    whole = np.concatenate(list(rng.batches(seed, samples, 0, sum(cuts), batch))).tolist()
    assert rows == whole
    for start, end in pairwise([*range(0, len(rows), samples), len(rows)]):
        part = rows[start:end]
        assert sorted(part) == list(range(samples)) if len(part) == samples else len(set(part)) == len(part)


def test_passes_and_seeds_differ_in_order() -> None:
    first, second = (tuple(rows.tolist()) for rows in rng.batches(1, 50, 0, 2, 50))
    (other,) = (tuple(rows.tolist()) for rows in rng.batches(2, 50, 0, 1, 50))
    assert len({first, second, other}) == 3
