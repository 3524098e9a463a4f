"""The reducer on vectors, in float64: what a step must be, whatever the deltas.

A name without a number means a largest difference of 1e-12 (`EXACT`); "differs" marks negative controls.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from reference import EXACT, Vector, difference
from trainpool.messages import Recipe, ShardId, Update
from trainpool.strategies import (
    DelayedNesterov,
    FedAsync,
    FedAvg,
    FedBuff,
    LocalSGD,
    Plan,
    Ringmaster,
    ShardPlan,
    StalenessAware,
    build,
    discover,
)
from trainpool.strategies.outer import Outer
from trainpool.strategies.reducer import Discount, Reducer
from trainpool.testing import check_strategy

SIZE, RATE = 50, 0.1
START = np.random.default_rng(1).normal(size=SIZE)


def plan(shards: int, steps: int = 100) -> Plan:
    """Shards with that many steps each, not in the order of their names."""
    names = [hashlib.sha256(bytes([number])).hexdigest() for number in range(shards)]
    return Plan(tuple(ShardPlan(name, 10, 1, steps) for name in names), Recipe(learning_rate=RATE, batch_size=1))


def normal(*shape: int, seed: int = 0) -> Vector:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def update(delta: Vector, *, steps: int = 1, staleness: int = 0, base: Vector | None = None) -> Update:
    """An admitted update, of one sample a step."""
    return Update(delta, steps, steps, 0.0, 0, staleness, RATE, base)


def feed(strategy: Any, updates: Iterable[tuple[ShardId, Update]], made: Plan) -> Any:
    """The state after those updates."""
    state = strategy.init(START, made)
    for shard, each in updates:
        assert shard in strategy.wanted(state)
        state = strategy.merge(state, shard, each)
    return state


def rounds(strategy: Any, deltas: Vector, **options: Any) -> Vector:
    """The parameters after rounds of deltas `[rounds, shards, SIZE]`."""
    made = plan(deltas.shape[1])
    stream = [(part.id, update(d, **options)) for row in deltas for part, d in zip(made.shards, row, strict=True)]
    return feed(strategy, stream, made).parameters


def pushes(strategy: Any, deltas: Vector, staleness: Sequence[int] | None = None) -> Vector:
    """The parameters after the deltas `[number, SIZE]` of one of four shards."""
    made = plan(4)
    late = staleness or [0] * len(deltas)
    stream = [(made.shards[0].id, update(d, staleness=tau)) for d, tau in zip(deltas, late, strict=True)]
    return feed(strategy, stream, made).parameters


# Sums


REDUCERS = [
    Reducer(),
    Reducer(weights="uniform", average="rda"),
    Reducer(outer=Outer("adam")),
    Reducer(buffer=6, discount=Discount("polynomial"), normalize=True),
    Reducer(buffer=6, discount=Discount("inverse"), average="rda"),
    Reducer(buffer=3, outer=Outer("nesterov", 0.7, 0.9)),
]


@pytest.mark.parametrize("reducer", REDUCERS)
def test_the_order_of_arrival_changes_no_bit_and_that_of_a_plain_sum_does(reducer: Reducer) -> None:
    """Within a round, or within a buffer: here all of one, or its first and second half."""
    made, deltas, found, plain = plan(6), normal(12, SIZE), set(), set()
    parts = list(zip(made.shards, deltas[:6], deltas[6:], strict=True))
    half = reducer.buffer or 6
    for order in itertools.permutations(range(half)):
        order = (*order, *range(half, 6))
        stream = [(parts[i][0].id, update(parts[i][1], steps=i + 1, staleness=i)) for i in order]
        stream += [(parts[i][0].id, update(parts[i][2], steps=3)) for i in reversed(order)]
        if half < 6:
            stream = stream[:half]
        found.add(feed(reducer, stream, made).parameters.tobytes())
        plain.add(sum((deltas[i] for i in order), np.zeros(SIZE)).tobytes())
    assert len(found) == 1
    assert len(plain) > 1


def test_updates_of_a_shard_in_a_buffer_are_added_in_their_order() -> None:
    made, deltas, found = plan(2), normal(4, SIZE), set()
    a, b = (part.id for part in made.shards)
    for order in set(itertools.permutations([a, a, b, b])):
        number = {a: iter(deltas[:2]), b: iter(deltas[2:])}
        stream = [(shard, update(next(number[shard]))) for shard in order]
        found.add(feed(Reducer(buffer=4), stream, made).parameters.tobytes())
    assert len(found) == 1


def test_weights_are_the_samples_trained_and_the_plain_mean_differs() -> None:
    made, deltas, steps = plan(4), normal(4, SIZE), (1, 5, 2, 9)
    stream = [(part.id, update(d, steps=n)) for part, d, n in zip(made.shards, deltas, steps, strict=True)]
    weighted = START - sum(n * d for n, d in zip(steps, deltas, strict=True)) / sum(steps)
    assert difference(feed(FedAvg(), stream, made).parameters, weighted) < EXACT
    assert difference(feed(LocalSGD(weights="samples"), stream, made).parameters, weighted) < EXACT
    assert difference(feed(LocalSGD(), stream, made).parameters, START - deltas.mean(0)) < EXACT
    assert difference(weighted, START - deltas.mean(0)) > 0.1


def test_a_round_is_complete_when_every_shard_that_had_steps_left_has_answered() -> None:
    made = plan(3, steps=4)
    long, short, other = (part.id for part in made.shards)
    strategy, delta = FedAvg(), np.ones(SIZE)
    state = strategy.init(START, made)
    for shard, steps, missing in ((short, 4, {long, other}), (other, 2, {long}), (long, 2, {long, other})):
        state = strategy.merge(state, shard, update(delta, steps=steps))
        assert set(strategy.wanted(state)) == missing
        assert len(strategy.wanted(state)) == len(missing)
        assert [shard in strategy.wanted(state) for shard in (long, short, other)] == [
            shard in missing for shard in (long, short, other)
        ]
    assert state.version == 1
    assert strategy.assign(state, long).progress == 8 / 12
    for shard in (other, long):
        state = strategy.merge(state, shard, update(delta, steps=2))
    assert state.version == 2
    assert not strategy.wanted(state)


def test_a_buffer_that_is_filled_in_part_is_applied_at_the_end_of_the_run() -> None:
    made, deltas = plan(2, steps=3), normal(6, SIZE)
    stream = [(made.shards[i % 2].id, update(d)) for i, d in enumerate(deltas)]
    state = feed(FedBuff(buffer=4, a=0.0), stream, made)
    assert state.version == 2
    assert not state.held
    assert difference(state.parameters, START - deltas[:4].mean(0) - deltas[4:].mean(0)) < EXACT


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(steps=0),
        FedBuff(buffer=7, momentum=0.5, steps=0),
        FedBuff(buffer=3, average="rda", weights="samples"),
        DelayedNesterov(period=4, c=0.25),
        FedAsync(mu=0.1, staleness="hinge", b=0.0),
    ],
)
def test_settings_beside_the_defaults_keep_the_contract(strategy: Any) -> None:
    check_strategy(strategy, convergence=False)


def test_rounds_want_a_shard_a_worker_and_asynchronous_methods_four() -> None:
    assert FedAvg().shards(3) == 3
    assert FedBuff().shards(3) == 12


class Unlisted(tuple[Any, ...]):
    """Shards that nobody may walk through."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it looks at every shard")


@pytest.mark.parametrize("name", [name for name, kind in discover().items() if "reducer" in dir(kind)])
def test_an_update_costs_no_look_at_every_shard(name: str) -> None:
    strategy = build(name)
    state = strategy.init(START, plan(100))
    names = [part.id for part in state.plan.shards]
    assert state.plan.budget
    assert state.plan.index
    state.plan.__dict__["shards"] = Unlisted(state.plan.shards)
    for shard in names[::2]:
        assert shard in strategy.wanted(state)
        assert len(strategy.wanted(state)) > 0
        strategy.assign(state, shard)
        state = strategy.merge(state, shard, update(np.ones(SIZE)))


# Norm-keeping means


@pytest.mark.parametrize("average", ["mean", "rda"])
def test_one_update_and_equal_updates_are_kept_whatever_the_weights(average: Any) -> None:
    (delta,) = normal(1, SIZE)
    reducer = Reducer(average=average)
    assert difference(rounds(reducer, delta[None, None]), START - delta) < EXACT
    made = plan(4)
    stream = [(part.id, update(delta, steps=n)) for part, n in zip(made.shards, (1, 7, 3, 2), strict=True)]
    assert difference(feed(reducer, stream, made).parameters, START - delta) < EXACT


def test_orthogonal_updates_of_equal_norm_keep_it_and_their_mean_is_shorter_by_the_root_of_their_number() -> None:
    M = 9
    directions, _ = np.linalg.qr(normal(SIZE, M))
    deltas = 3 * directions.T[None]
    kept = START - rounds(Reducer(average="rda"), deltas)
    mean = START - rounds(Reducer(), deltas)
    assert np.linalg.norm(kept) == pytest.approx(3, abs=EXACT)
    assert np.linalg.norm(mean) == pytest.approx(3 / M**0.5, abs=EXACT)
    assert difference(kept / M**0.5, mean) < EXACT


def test_the_mean_of_directions_is_the_published_formula() -> None:
    deltas, weights = normal(4, SIZE) * np.array([[1.0], [2.0], [0.5], [3.0]]), np.array([1, 5, 2, 3])
    made = plan(4)
    stream = [(part.id, update(d, steps=int(n))) for part, d, n in zip(made.shards, deltas, weights, strict=True)]
    norms = np.linalg.norm(deltas, axis=1)
    direction = (weights / norms) @ deltas
    expected = (weights @ norms) / weights.sum() * direction / np.linalg.norm(direction)
    for reducer in (Reducer(average="rda"), Reducer(average="rda", buffer=4)):
        assert difference(feed(reducer, stream, made).parameters, START - expected) < EXACT


def test_updates_that_are_zero_or_cancel_move_nothing() -> None:
    (delta,) = normal(1, SIZE)
    for deltas in (np.zeros((1, 2, SIZE)), np.stack([delta, -delta])[None]):
        assert np.array_equal(rounds(Reducer(average="rda"), deltas), START)


# Staleness


def test_discounts_have_their_published_values() -> None:
    poly, hinge, inverse = Discount("polynomial", 0.5), Discount("hinge", 10.0, 4.0), Discount("inverse")
    assert [Discount()(tau) for tau in (0, 9)] == [1, 1]
    assert [poly(tau) for tau in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [hinge(tau) for tau in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])
    assert [inverse(tau) for tau in (0, 1, 2, 10)] == [1, 1, 1 / 2, 1 / 10]


def test_equally_stale_updates_with_normalized_weights_are_unweighted_and_without_differ() -> None:
    deltas, late = normal(8, SIZE), [5] * 8
    fresh = pushes(FedBuff(buffer=4), deltas)
    discount = Discount("polynomial")
    normalized = Reducer(buffer=4, weights="uniform", discount=discount, normalize=True)
    assert difference(pushes(normalized, deltas, late), fresh) < EXACT
    assert difference(START - pushes(FedBuff(buffer=4), deltas, late), (START - fresh) / 6**0.5) < EXACT
    assert difference(pushes(FedBuff(buffer=4), deltas, late), fresh) > 0.1


def test_a_buffer_divides_by_its_size_and_not_by_its_discounts() -> None:
    deltas, late = normal(4, SIZE), [0, 3, 8, 0]
    expected = START - np.array([1, 1 / 2, 1 / 3, 1]) @ deltas / 4
    assert difference(pushes(FedBuff(buffer=4), deltas, late), expected) < EXACT


@pytest.mark.parametrize("rule", ["polynomial", "hinge", "constant"])
def test_a_buffer_of_one_is_fedasync_bit_for_bit(rule: Any) -> None:
    deltas, late = normal(8, SIZE), [0, 1, 2, 5, 9, 0, 7, 3]
    found = pushes(FedAsync(alpha=0.6, staleness=rule), deltas, late)
    s = Discount(rule)
    assert difference(found, START - 0.6 * sum(s(tau) * d for tau, d in zip(late, deltas, strict=True))) < EXACT
    if rule == "polynomial":
        assert pushes(FedBuff(buffer=1, learning_rate=0.6), deltas, late).tobytes() == found.tobytes()
    if rule == "constant":
        limit = Ringmaster(learning_rate=0.6)
        assert pushes(limit, deltas, late).tobytes() == found.tobytes()


def test_fedasync_is_the_mixing_form_when_fresh_and_differs_when_stale() -> None:
    stale, end = normal(2, SIZE)
    mixed = 0.4 * START + 0.6 * end
    server = FedAsync(alpha=0.6, staleness="constant")
    assert difference(pushes(server, (START - end)[None]), mixed) < EXACT
    assert difference(pushes(server, (stale - end)[None]), mixed) > 0.1


def test_staleness_divides_a_step_and_fresh_updates_are_taken_whole() -> None:
    deltas = normal(4, SIZE)
    found = pushes(StalenessAware(), deltas, [0, 1, 2, 4])
    assert difference(found, START - deltas[0] - deltas[1] - deltas[2] / 2 - deltas[3] / 4) < EXACT
    assert difference(pushes(StalenessAware(), deltas, [1] * 4), pushes(StalenessAware(), deltas)) == 0


def test_after_a_partial_round_a_step_is_as_much_of_the_run_as_those_who_answer_make_it() -> None:
    made, reducer = plan(8), Reducer(steps=5)
    state = reducer.init(START, made)
    whole = 8 / made.budget
    assert state.pace == pytest.approx(whole)
    for shard in made.shards[:2]:
        state = reducer.merge(state, shard.id, update(normal(SIZE), steps=5))
    state = reducer.close(state)
    assert (state.version, state.missing) == (1, 8)
    assert state.pace == pytest.approx(2 / made.budget)
    for shard in made.shards:  # all are there again, which the next round but one will know
        state = reducer.merge(state, shard.id, update(normal(SIZE), steps=5))
    assert (state.version, state.pace) == (2, pytest.approx(whole))
