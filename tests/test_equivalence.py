"""Exact equivalences of averaging methods with plain training loops, in float64.

A name without a number means a largest difference of 1e-12 (`EXACT`); "differs" marks negative controls, which would
catch a fault that makes everything equal.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from reference import (
    EXACT,
    Vector,
    batch_norm,
    batches,
    conv,
    descend,
    difference,
    gradient,
    merged,
    mlp,
    plan_of,
    put,
    run,
    sgd,
    shards,
    start,
    system,
    together,
)
from trainpool.messages import Optimizer, Recipe, Update
from trainpool.pace import Pace
from trainpool.strategies import ADMM, AnyStrategy, Downpour, ParallelSGD, Serial
from trainpool.strategies.protocol import State

ROUNDS = 20
RATE = 0.1

Net = Callable[[], nn.Module]
nets = pytest.mark.parametrize("net", [conv, mlp])


def recipe(
    batch_size: int = 0,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: Optimizer = "sgd",
    rate: float = RATE,
) -> Recipe:
    """Plain SGD at a constant rate, unless said otherwise."""
    return Recipe(
        optimizer=optimizer,
        learning_rate=rate,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule="constant",
    )


def weighted_steps(net: Net, sizes: Sequence[int], weights: Sequence[float], rounds: int) -> Vector:
    """Full-batch local steps, averaged by the given weights after each."""
    data, model = shards(*sizes), net()
    w = start(model)
    for _ in range(rounds):
        ends = [w - RATE * gradient(put(model, w), part["x"], part["y"]) for part in data.values()]
        w = sum((weight * end for weight, end in zip(weights, ends, strict=True)), np.zeros_like(w))
    return w


# Averaging


@nets
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("batch", [0, 4])
def test_the_mean_of_single_steps_on_equal_shards_is_a_large_batch_step(
    net: Net, weight_decay: float, batch: int
) -> None:
    data, how = shards(12, 12, 12, 12), recipe(batch, weight_decay=weight_decay)
    end = run(net(), data, ParallelSGD(rounds=ROUNDS), how, ROUNDS)
    stream = merged([batches(end, data, number, batch) for number in range(4)])
    large = descend(net(), stream, ROUNDS, sgd(RATE, weight_decay=weight_decay))
    assert end.memory.updates == 4 * ROUNDS
    assert difference(end.parameters, large) < EXACT


@nets
def test_on_unequal_shards_the_mean_weighted_by_samples_is_and_the_plain_mean_differs(net: Net) -> None:
    sizes = (5, 9, 20, 14)
    end = run(net(), shards(*sizes), ParallelSGD(rounds=ROUNDS), recipe(), ROUNDS)
    large = descend(net(), itertools.repeat(together(shards(*sizes))), ROUNDS, sgd(RATE))
    assert difference(end.parameters, large) < EXACT
    assert difference(weighted_steps(net, sizes, [n / 48 for n in sizes], ROUNDS), large) < EXACT
    assert difference(weighted_steps(net, sizes, [0.25] * 4, ROUNDS), large) > 1e-3


@nets
def test_momentum_that_starts_anew_in_single_step_tasks_is_plain_sgd_and_differs_from_momentum_sgd(net: Net) -> None:
    data = shards(12, 12, 12, 12)
    end = run(net(), data, ParallelSGD(rounds=ROUNDS), recipe(momentum=0.9), ROUNDS)
    plain = descend(net(), itertools.repeat(together(data)), ROUNDS, sgd(RATE))
    momentum = descend(net(), itertools.repeat(together(data)), ROUNDS, sgd(RATE, momentum=0.9))
    assert difference(end.parameters, plain) < EXACT
    assert difference(end.parameters, momentum) > 1e-2


@nets
def test_momentum_that_workers_would_keep_is_momentum_sgd_at_single_steps(net: Net) -> None:
    """What tasks that know nothing of the one before give up: the loop by hand that the test above differs from."""
    data = shards(12, 12, 12, 12)
    models = [net() for _ in data]
    optimizers = [sgd(RATE, momentum=0.9)(model.parameters()) for model in models]
    w = start(net())
    for _ in range(ROUNDS):
        ends = []
        for model, optimizer, part in zip(models, optimizers, data.values(), strict=True):
            gradient(put(model, w), part["x"], part["y"])
            optimizer.step()
            ends.append(start(model))
        w = np.mean(ends, axis=0)
    momentum = descend(net(), itertools.repeat(together(data)), ROUNDS, sgd(RATE, momentum=0.9))
    assert difference(w, momentum) < EXACT
    assert difference(w, descend(net(), itertools.repeat(together(data)), ROUNDS, sgd(RATE))) > 1e-2


@nets
def test_the_mean_of_adamw_steps_differs_from_a_large_batch_adamw(net: Net) -> None:
    data, rate = shards(12, 12, 12, 12), 0.01
    end = run(net(), data, ParallelSGD(rounds=ROUNDS), recipe(optimizer="adamw", rate=rate), ROUNDS)
    large = descend(
        net(),
        itertools.repeat(together(data)),
        ROUNDS,
        lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0),
    )
    assert difference(end.parameters, large) > 1e-2


@nets
def test_one_adamw_task_is_pytorchs_adamw(net: Net) -> None:
    data = shards(12)
    how = recipe(4, optimizer="adamw", rate=0.01, weight_decay=0.1)
    end = run(net(), data, ParallelSGD(rounds=1), how, 15)
    alone = descend(
        net(),
        batches(end, data, 0, 4),
        15,
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    )
    assert difference(end.parameters, alone) < EXACT


@nets
@pytest.mark.parametrize("rounds", [1, 4, 12])
def test_one_shard_is_serial_sgd_however_often_averaged(net: Net, rounds: int) -> None:
    data = shards(21)
    end = run(net(), data, ParallelSGD(rounds=rounds), recipe(4), 12)
    assert difference(end.parameters, descend(net(), batches(end, data, 0, 4), 12, sgd(RATE))) < EXACT


@nets
@pytest.mark.parametrize("seconds", [0.5, 3.0, 100.0])
def test_serial_tasks_of_any_length_are_one_long_run(net: Net, seconds: float) -> None:
    data = shards(21)
    end = run(net(), data, Serial(), recipe(4), 30, pace=Pace(target=seconds))
    assert difference(end.parameters, descend(net(), batches(end, data, 0, 4), 30, sgd(RATE))) < EXACT


def test_a_schedule_follows_the_run_and_not_the_task() -> None:
    data, how = shards(21), Recipe(learning_rate=RATE, batch_size=4, schedule="cosine", warmup=0.2)
    end = run(mlp(), data, Serial(), how, 30, pace=Pace(target=3.0))
    once = run(mlp(), data, ParallelSGD(rounds=1), how, 30)
    thrice = run(mlp(), data, ParallelSGD(rounds=3), how, 30)
    model, stream = mlp(), batches(end, data, 0, 4)
    w = start(model)
    for step, (x, y) in zip(range(30), stream, strict=False):
        w = w - how.rate(step / 30) * gradient(put(model, w), x, y)
    for found in (end, once, thrice):
        assert difference(found.parameters, w) < EXACT


@nets
def test_one_round_of_several_local_steps_is_the_mean_of_serial_runs(net: Net) -> None:
    data = shards(7, 7, 7)
    end = run(net(), data, ParallelSGD(rounds=1), recipe(1), 14)
    ends = [descend(net(), batches(end, data, number, 1), 14, sgd(RATE)) for number in range(3)]
    assert difference(end.parameters, np.mean(ends, axis=0)) < EXACT
    assert difference(end.parameters, ends[0]) > 1e-3


@nets
def test_several_local_steps_differ_from_large_batch_steps(net: Net) -> None:
    data = shards(12, 12, 12, 12)
    end = run(net(), data, ParallelSGD(rounds=4), recipe(), 20)
    large = descend(net(), itertools.repeat(together(data)), 20, sgd(RATE))
    assert difference(end.parameters, large) > 1e-4


@nets
@pytest.mark.parametrize("strategy", [ParallelSGD(rounds=4), ADMM(rounds=4, relaxation=1.0)])
def test_workers_with_the_same_data_are_one_worker(net: Net, strategy: AnyStrategy) -> None:
    (one,) = shards(12).values()
    data = dict.fromkeys(shards(1, 1, 1, 1), one)
    many = run(net(), data, strategy, recipe(), 20)
    alone = run(net(), dict(list(data.items())[:1]), strategy, recipe(), 20)
    assert difference(many.parameters, alone.parameters) < EXACT


@pytest.mark.parametrize("strategy", [ParallelSGD(rounds=2), ADMM(rounds=2)])
def test_the_order_of_arrival_changes_no_bit(strategy: AnyStrategy) -> None:
    data, generator = shards(3, 5, 8, 2), np.random.default_rng(0)
    plan = plan_of(data, recipe(), 2)
    deltas = {shard: generator.normal(size=100) for shard in data}
    found = set()
    for order in itertools.permutations(data):
        state: State = strategy.init(np.ones(100), plan)
        for turn in (order, order[::-1]):
            for shard in turn:
                samples = plan[shard].batch
                state = strategy.merge(state, shard, Update(deltas[shard], 1, samples, 0.0, state.version, 0, RATE))
        found.add(state.parameters.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("strategy", [ParallelSGD(rounds=5), ADMM(rounds=5)])
def test_the_speed_of_workers_changes_no_bit_of_a_synchronous_method(strategy: AnyStrategy) -> None:
    data = shards(7, 12, 9, 4)
    even = run(mlp(), data, strategy, recipe(4), 20)
    for speeds in ([1.0, 2.0, 7.0, 40.0], [3.0, 2.0], [5.0]):
        found = run(mlp(), data, strategy, recipe(4), 20, speeds=speeds)
        assert found.parameters.tobytes() == even.parameters.tobytes()


def test_the_speed_of_workers_changes_no_bit_of_a_rounds_buffers() -> None:
    data, found = shards(7, 12, 9, 4), set()
    for speeds in ([1.0] * 4, [1.0, 2.0, 7.0, 40.0], [3.0, 2.0], [5.0]):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)).double()
        torch.manual_seed(0)
        for p in net.parameters():
            nn.init.normal_(p, 0, 0.1)
        found.add(run(net, data, ParallelSGD(rounds=5), recipe(4), 20, speeds=speeds).buffers.tobytes())
    assert len(found) == 1


def test_the_speed_of_workers_differs_in_an_asynchronous_method() -> None:
    data = shards(7, 12, 9, 4)
    ends = [run(mlp(), data, Downpour(), recipe(4), 20, speeds=s).parameters for s in ([1.0] * 4, [1.0, 2, 7, 40])]
    assert difference(*ends) > 1e-6


# BatchNorm


def test_batch_norm_means_are_exact_variances_pool_exactly_and_their_mean_differs() -> None:
    data = shards(12, 12, 12, 12)
    end = run(batch_norm(), data, ParallelSGD(rounds=1), recipe(), 1)
    model = batch_norm()
    x, _ = together(data)
    activations = model[0](torch.from_numpy(x)).detach().numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    mean, variance = end.buffers[:4], end.buffers[4:8]
    np.testing.assert_allclose(mean, activations.mean(1), rtol=0, atol=EXACT)
    parts = np.split(activations, 4, axis=1)
    within = np.mean([part.var(1, ddof=1) for part in parts], axis=0)  # PyTorch's running variance is the unbiased one
    between = np.var([part.mean(1) for part in parts], axis=0)
    np.testing.assert_allclose(variance, within + between, rtol=0, atol=EXACT)
    correction = within / parts[0].shape[1]  # of the unbiased variances, n/(n-1), before they are pooled
    np.testing.assert_allclose(variance - correction, activations.var(1), rtol=0, atol=EXACT)
    assert np.abs(within - activations.var(1)).max() > 1e-2
    assert end.buffers[8] == 1


def test_single_steps_with_batch_norm_differ_from_a_large_batch() -> None:
    data = shards(12, 12, 12, 12)
    end = run(batch_norm(), data, ParallelSGD(rounds=1), recipe(), 1)
    large = descend(batch_norm(), itertools.repeat(together(data)), 1, sgd(RATE))
    assert difference(end.parameters, large) > 1e-3


def test_a_coordinator_in_float64_keeps_float64() -> None:
    coordinator = system(conv(), shards(4), ParallelSGD(), recipe(), 1)
    assert coordinator.parameters.dtype == np.float64
