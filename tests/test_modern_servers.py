"""DC-ASGD and EASGD on vectors, in float64, and the settings that no method takes.

A name without a number means a largest difference of 1e-12 (`EXACT`); "differs" marks negative controls.
"""

import copy
from typing import Any

import numpy as np
import pytest

from reference import EXACT, Vector, batches, descend, difference, mlp, run, sgd, shards, start
from test_reducer import RATE, SIZE, START, feed, normal, plan, pushes, update
from trainpool.errors import ConfigError
from trainpool.messages import Recipe, Update
from trainpool.pace import Pace
from trainpool.strategies import (
    ADMM,
    DCASGD,
    EASGD,
    AnyStrategy,
    DelayedNesterov,
    DiLoCo,
    Downpour,
    FedAsync,
    FedAvg,
    FedBuff,
    FedOpt,
    FedProx,
    LocalSGD,
    ParallelSGD,
    Ringmaster,
    StalenessAware,
)

COMPENSATIONS = pytest.mark.parametrize("compensation", ["adaptive", "constant"])
CONSTANT = Recipe(learning_rate=RATE, batch_size=4, schedule="constant")


def compensated(strategy: DCASGD, deltas: Vector, bases: Vector, steps: int = 1) -> Any:
    """The state after stale updates."""
    made = plan(4)
    stream = [(made.shards[0].id, update(d, steps=steps, base=base)) for d, base in zip(deltas, bases, strict=True)]
    return feed(strategy, stream, made)


# DC-ASGD


@COMPENSATIONS
@pytest.mark.parametrize("steps", [1, 5])
def test_delay_compensation_is_the_papers_loop_and_without_it_differs(compensation: Any, steps: int) -> None:
    deltas, bases = 0.05 * normal(10, SIZE), START + 0.1 * normal(10, SIZE, seed=2)
    w, MS, strength, m, eta = START.copy(), np.zeros(SIZE), 0.4, 0.9, 0.5
    for delta, base in zip(deltas, bases, strict=True):
        g = delta / (RATE * steps)
        MS = m * MS + (1 - m) * g * g
        lam = strength / np.sqrt(MS + 1e-7) if compensation == "adaptive" else strength
        w = w - eta * RATE * steps * (g + lam * g * g * (w - base))
    strategy = DCASGD(compensation=compensation, strength=strength, decay=m, factor=eta)
    found = compensated(strategy, deltas, bases, steps).parameters
    assert difference(found, w) < EXACT
    assert difference(found, START - eta * deltas.sum(0)) > 1e-4


@COMPENSATIONS
@pytest.mark.parametrize("strength", [0.0, 0.04, 2.0, 100.0])
def test_without_delay_every_strength_is_sgd_bit_for_bit(compensation: Any, strength: float) -> None:
    made, deltas = plan(4), normal(10, SIZE)
    strategy, shard = DCASGD(compensation=compensation, strength=strength, factor=1.0), made.shards[0].id
    state, w = strategy.init(START, made), START.copy()
    for delta in deltas:
        state = strategy.merge(state, shard, update(delta, base=state.parameters.copy()))
        w = w - delta
    assert difference(state.parameters, w) == 0


@COMPENSATIONS
def test_strength_0_is_asynchronous_sgd_however_stale_bit_for_bit(compensation: Any) -> None:
    deltas, bases = normal(10, SIZE), normal(10, SIZE, seed=2)
    found = compensated(DCASGD(compensation=compensation, strength=0.0, factor=0.5), deltas, bases).parameters
    assert difference(found, pushes(FedAsync(alpha=0.5, staleness="constant"), deltas)) == 0


def test_a_correction_never_exceeds_what_moved() -> None:
    deltas, (base,) = 10 * normal(1, SIZE), normal(1, SIZE, seed=2)
    found = compensated(DCASGD(compensation="constant", strength=1e9, factor=1.0), deltas, base[None]).parameters
    assert difference(found, START - deltas[0] - (START - base)) < EXACT


@COMPENSATIONS
@pytest.mark.parametrize("rate", [1e-12, 1e-30])
def test_a_rate_near_0_makes_no_parameter_infinite(compensation: Any, rate: float) -> None:
    made, single = plan(4), START.astype(np.float32)
    strategy, shard = DCASGD(compensation=compensation, factor=1.0), made.shards[0].id
    state = strategy.init(single, made)
    for number in range(3):  # a gradient's square is more than float32 holds
        stale = Update(np.full(SIZE, 1e6, np.float32), 1, 1, 0.0, 0, 1, rate, single + np.float32(number))
        state = strategy.merge(state, shard, stale)
        assert np.isfinite(state.parameters).all()


def test_a_task_at_rate_0_moves_nothing() -> None:
    made = plan(1)
    state = DCASGD().init(START, made)
    nothing = Update(np.zeros(SIZE), 5, 5, 0.0, 0, 0, 0.0, START + 1)
    assert np.array_equal(DCASGD().merge(state, made.shards[0].id, nothing).parameters, START)


def test_a_run_of_one_worker_is_serial_sgd_and_the_coordinator_keeps_the_bases_of_several() -> None:
    data = shards(21)
    end = run(mlp(), data, DCASGD(factor=1.0, steps=5, flexible=False), CONSTANT, 40)
    assert difference(end.parameters, descend(mlp(), batches(end, data, 0, 4), 40, sgd(RATE))) < EXACT
    data, speeds = shards(8, 12, 5), [1.0, 2.5, 6.0]
    with_delay = run(mlp(), data, DCASGD(factor=0.5), CONSTANT, 40, speeds=speeds)
    without = run(mlp(), data, DCASGD(factor=0.5, strength=0.0), CONSTANT, 40, speeds=speeds)
    assert with_delay.memory.staleness > 0
    assert not with_delay.memory.bases
    assert difference(with_delay.parameters, without.parameters) > 1e-6


# EASGD


def elastic(beta: float, deltas: Vector, shards: int) -> Any:
    """The state after each shard in turn answered with a delta of its own replica."""
    made = plan(shards)
    stream = [(made.shards[i % shards].id, update(d)) for i, d in enumerate(deltas)]
    return feed(EASGD(beta=beta), stream, made), [part.id for part in made.shards]


def test_an_exchange_is_the_papers_loop() -> None:
    deltas, alpha = normal(12, SIZE), 0.9 / 4
    centre, x = START.copy(), [START.copy() for _ in range(4)]
    for i, delta in enumerate(deltas):
        x[i % 4] = x[i % 4] - delta
        d = alpha * (x[i % 4] - centre)
        x[i % 4], centre = x[i % 4] - d, centre + d
    state, names = elastic(0.9, deltas, 4)
    assert difference(state.parameters, centre) < EXACT
    for name, replica in zip(names, x, strict=True):
        assert difference(state.replicas[name], replica) < EXACT


def test_an_exchange_conserves_the_sum_of_replicas_and_centre() -> None:
    deltas = normal(12, SIZE)
    state, _ = elastic(0.9, deltas, 4)
    assert difference(sum(state.replicas.values()) + state.parameters, 5 * START - deltas.sum(0)) < EXACT


def test_the_centre_moves_by_beta_of_the_way_to_the_mean_replica() -> None:
    beta, (delta,) = 0.9, normal(1, SIZE)
    state, _ = elastic(beta, delta[None], 1)
    assert difference(state.parameters, (1 - beta) * START + beta * (START - delta)) < EXACT


@pytest.mark.parametrize("shards", [2, 4, 9])
def test_replicas_that_meet_one_centre_move_it_by_beta_of_the_way_to_their_mean_and_in_turn_differ(shards: int) -> None:
    """The paper's synchronous rule, from a state in which replicas and centre lie apart."""
    beta, deltas = 0.9, normal(2 * shards, SIZE)
    state, names = elastic(beta, deltas[:shards], shards)
    ends = [state.replicas[name] - delta for name, delta in zip(names, deltas[shards:], strict=True)]
    expected = (1 - beta) * state.parameters + beta * np.mean(ends, axis=0)
    moves = [
        EASGD(beta=beta).merge(copy.deepcopy(state), name, update(delta)).parameters - state.parameters
        for name, delta in zip(names, deltas[shards:], strict=True)
    ]
    assert difference(state.parameters + sum(moves), expected) < EXACT
    assert difference(elastic(beta, deltas, shards)[0].parameters, expected) > 1e-3


def test_alpha_1_swaps_the_replica_and_the_centre() -> None:
    (delta,) = normal(1, SIZE)
    state, (name,) = elastic(1.0, delta[None], 1)
    assert difference(state.parameters, START - delta) < EXACT
    assert difference(state.replicas[name], START) < EXACT


def test_alpha_0_trains_independent_networks_and_leaves_the_centre() -> None:
    data = shards(9, 12)
    end = run(mlp(), data, EASGD(beta=0.0), CONSTANT, 40, speeds=[1.0, 3.0])
    assert difference(end.parameters, start(mlp())) == 0
    for number, shard in enumerate(data):
        alone = descend(mlp(), batches(end, data, number, 4), 40, sgd(RATE))
        assert difference(end.state.replicas[shard], alone) < EXACT


def test_a_spring_moves_both_ends() -> None:
    data = shards(9, 12)
    end = run(mlp(), data, EASGD(), CONSTANT, 40, speeds=[1.0, 3.0])
    assert difference(end.parameters, start(mlp())) > 1e-2
    alone = descend(mlp(), batches(end, data, 0, 4), 40, sgd(RATE))
    assert difference(end.state.replicas[next(iter(data))], alone) > 1e-3


def test_no_bound_of_staleness_refuses_a_replica_and_for_another_method_it_does() -> None:
    data, speeds, ends = shards(9, 12, 7), [1.0, 2.5, 6.0], []
    for limit in (None, 0):
        end = run(mlp(), data, EASGD(), CONSTANT, 40, speeds=speeds, pace=Pace(limit=limit))
        assert end.memory.rejected == 0
        assert end.memory.staleness > 0
        ends.append(end.parameters.tobytes())
    assert ends[0] == ends[1]
    other = run(mlp(), data, FedAsync(), CONSTANT, 40, speeds=speeds, pace=Pace(limit=0))
    assert other.memory.rejected > 0


# Settings


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FedAvg(steps=-1), "fedavg: steps: "),
        (FedProx(mu=-0.1), "fedprox: mu: "),
        (FedProx(mu=float("nan")), "fedprox: mu: "),
        (LocalSGD(weights="equal"), "local-sgd: weights: "),  # type: ignore[arg-type]
        (FedOpt(optimizer="sgd"), "fedopt: optimizer: "),  # type: ignore[arg-type]
        (FedOpt(tau=0.0), "fedopt: tau: "),
        (DiLoCo(momentum=1.0), "diloco: momentum: "),
        (DiLoCo(learning_rate="fast"), "diloco: learning_rate: "),  # type: ignore[arg-type]
        (DiLoCo(average="median"), "diloco: average: "),  # type: ignore[arg-type]
        (DelayedNesterov(period=-1), "delayed-nesterov: period: "),
        (DelayedNesterov(period=4, c=0.5), "delayed-nesterov: c: "),
        (FedBuff(buffer=0), "fedbuff: buffer: "),
        (FedAsync(alpha=float("inf")), "fedasync: alpha: "),
        (FedAsync(staleness="inverse"), "fedasync: staleness: "),  # type: ignore[arg-type]
        (StalenessAware(learning_rate=0.0), "staleness-aware: learning_rate: "),
        (Ringmaster(limit=-1), "ringmaster: limit: "),
        (DCASGD(decay=1.0), "dc-asgd: decay: "),
        (DCASGD(strength=-1.0), "dc-asgd: strength: "),
        (EASGD(beta=5.0), "easgd: beta: "),
        (ParallelSGD(rounds=-1), "parallel-sgd: rounds: "),
        (ADMM(rho=0.0), "admm: rho: "),
        (ADMM(relaxation=2.0), "admm: relaxation: "),
        (ADMM(l2=-1.0), "admm: l2: "),
        (Downpour(server="adam"), "downpour: server: "),  # type: ignore[arg-type]
        (Downpour(warm_start=1.5), "downpour: warm_start: "),
        (Downpour(epsilon=-1.0), "downpour: epsilon: "),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_on_one_line(strategy: AnyStrategy, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        strategy.init(START, plan(4))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
