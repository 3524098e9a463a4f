"""Exact equivalences of whole runs with rounds, buffers and outer optimizers, in float64.

A name without a number means a largest difference of 1e-12 (`EXACT`), or 1e-11 after many rounds with momentum;
"differs" marks negative controls, which would catch a fault that makes everything equal.
"""

import itertools
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from reference import (
    EXACT,
    Data,
    Vector,
    batches,
    conv,
    descend,
    difference,
    merged,
    mlp,
    run,
    sgd,
    shards,
    start,
    system,
    together,
)
from test_asynchronous import one_worker_and_a_late_one, plan_of_quadratic
from trainpool.coordinator import Coordinator
from trainpool.events import Asked, Returned, Send
from trainpool.kernels.torch import TorchKernel
from trainpool.messages import Recipe, ShardId
from trainpool.pace import Pace
from trainpool.pools.protocol import Arrival
from trainpool.strategies import (
    ADMM,
    DCASGD,
    AnyStrategy,
    DelayedNesterov,
    DiLoCo,
    FedAsync,
    FedAvg,
    FedBuff,
    FedOpt,
    FedProx,
    LocalSGD,
    ParallelSGD,
    Ringmaster,
    Serial,
    StalenessAware,
    build,
    discover,
    settings,
)
from trainpool.testing import Quadratic

ROUNDS, RATE = 20, 0.1
nets = pytest.mark.parametrize("net", [conv, mlp])


def recipe(batch_size: int = 0, **options: Any) -> Recipe:
    """Plain SGD at a constant rate, unless said otherwise."""
    return Recipe(**{"learning_rate": RATE, "batch_size": batch_size, "schedule": "constant"} | options)


def lockstep(
    net: Any,
    data: Data,
    strategy: AnyStrategy,
    how: Recipe,
    steps: int,
    *,
    pace: Pace | None = None,
    tape: list[list[tuple[ShardId, Vector, Vector]]] | None = None,
) -> Coordinator:
    """A run whose workers, one a shard, all begin together and ask again when all have answered: no delay.

    `tape` receives each round's tasks in the order of their answers: shard, where it began, its delta.
    """
    coordinator = system(net(), data, strategy, how, steps, pace=pace)
    kernel = TorchKernel(net(), torch.nn.functional.cross_entropy)
    names, now = [f"w{number}" for number in range(len(data))], 0.0
    while not coordinator.memory.done:
        answers: list[tuple[Returned, Vector]] = []
        begun: list[Vector] = []
        for command in [c for name in names for c in coordinator.handle(Asked(name), now) if isinstance(c, Send)]:
            out = np.empty(coordinator.layout.size)
            vector = np.concatenate([command.parameters, command.buffers])
            begun.append(command.parameters.copy())
            anchor = None if command.anchor is None else command.anchor.copy()
            report = kernel.run(command.task, vector, anchor, data[command.task.shard], out)
            answers.append((Returned(command.worker, msgspec.structs.replace(report, seconds=1.0)), out))
        now += 1
        answers.reverse()
        trainable = coordinator.layout.trainable
        if tape is not None:
            leases = coordinator.memory.leases
            shards_of = [leases[event.report.task].task.shard for event, _ in answers]
            begun.reverse()
            tape.append([(s, b, o[:trainable].copy()) for s, b, (_, o) in zip(shards_of, begun, answers, strict=True)])
        for event, out in answers:
            coordinator.handle(event, now, out[:trainable], out[trainable:])
    return coordinator


def same_bits(a: Coordinator, b: Coordinator) -> bool:
    """Whether two runs ended with the same bits, and both with all samples."""
    assert a.memory.samples == b.memory.samples == a.plan.budget
    return a.parameters.tobytes() == b.parameters.tobytes()


# Rounds


@nets
@pytest.mark.parametrize("strategy", [FedAvg(steps=1), LocalSGD(steps=1), FedProx(steps=1)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rounds_of_single_steps_on_equal_shards_are_large_batch_sgd(
    net: Any, strategy: AnyStrategy, weight_decay: float
) -> None:
    data = shards(12, 12, 12, 12)
    end = run(net(), data, strategy, recipe(4, weight_decay=weight_decay), ROUNDS)
    stream = merged([batches(end, data, number, 4) for number in range(4)])
    large = descend(net(), stream, ROUNDS, sgd(RATE, weight_decay=weight_decay))
    assert end.state.version == ROUNDS
    assert difference(end.parameters, large) < EXACT


@nets
def test_on_unequal_shards_fedavg_of_whole_batches_is_gradient_descent_and_the_uniform_mean_differs(net: Any) -> None:
    data = shards(5, 9, 20, 14)
    large = descend(net(), itertools.repeat(together(data)), ROUNDS, sgd(RATE))
    weighted = run(net(), data, FedAvg(steps=1), recipe(), ROUNDS)
    uniform = run(net(), data, LocalSGD(steps=1), recipe(), ROUNDS)
    assert difference(weighted.parameters, large) < EXACT
    assert difference(uniform.parameters, large) > 1e-3


@nets
def test_momentum_that_starts_anew_in_single_step_tasks_is_plain_sgd_and_adamw_differs_from_a_large_batch(
    net: Any,
) -> None:
    data = shards(12, 12, 12, 12)
    stream = itertools.repeat(together(data))
    momentum = run(net(), data, FedAvg(steps=1), recipe(momentum=0.9), ROUNDS)
    assert difference(momentum.parameters, descend(net(), stream, ROUNDS, sgd(RATE))) < EXACT
    assert difference(momentum.parameters, descend(net(), stream, ROUNDS, sgd(RATE, momentum=0.9))) > 1e-2
    adamw = run(net(), data, FedAvg(steps=1), recipe(optimizer="adamw", learning_rate=0.01), ROUNDS)
    large = descend(net(), stream, ROUNDS, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0))
    assert difference(adamw.parameters, large) > 1e-2


@nets
@pytest.mark.parametrize("strategy", [FedAvg(steps=5), LocalSGD(steps=7), DiLoCo(1.0, 0.0, steps=5)])
def test_one_shard_is_serial_sgd(net: Any, strategy: AnyStrategy) -> None:
    data = shards(21)
    end = run(net(), data, strategy, recipe(4), 40)
    assert difference(end.parameters, descend(net(), batches(end, data, 0, 4), 40, sgd(RATE))) < EXACT


@nets
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_fedavg_is_parallel_sgd_in_as_many_rounds_and_the_schedule_follows_the_run(net: Any, schedule: Any) -> None:
    data, how = shards(12, 12, 12), recipe(4, schedule=schedule, warmup=0.1)
    average = run(net(), data, FedAvg(steps=5, flexible=False), how, 20)
    parallel = run(net(), data, ParallelSGD(rounds=4), how, 20)
    other = run(net(), data, ParallelSGD(rounds=5), how, 20)
    assert difference(average.parameters, parallel.parameters) < EXACT
    assert difference(average.parameters, other.parameters) > 1e-5


ROUND_METHODS = [FedAvg(5, False), LocalSGD(5), FedOpt(steps=5, flexible=False), DiLoCo(steps=5, flexible=False)]


@pytest.mark.parametrize("strategy", ROUND_METHODS)
def test_the_speed_and_the_number_of_workers_change_no_bit_of_rounds(strategy: AnyStrategy) -> None:
    data, how = shards(7, 12, 9, 4), recipe(4, schedule="cosine")
    even = run(mlp(), data, strategy, how, [20, 13, 20, 8])
    for speeds in ([1.0, 2.0, 7.0, 40.0], [3.0, 2.0], [5.0]):
        assert same_bits(even, run(mlp(), data, strategy, how, [20, 13, 20, 8], speeds=speeds))


def test_a_partial_round_with_a_worker_for_each_shard_is_a_full_one_and_with_fewer_workers_is_not() -> None:
    data, how = shards(12, 12, 12, 12), recipe(4, schedule="cosine")
    for flexible in (False, True):
        full = DiLoCo(steps=5, flexible=flexible)
        partial = replace(full, participation="partial")
        even = run(mlp(), data, full, how, 20, speeds=[1.0, 1.0, 2.0, 4.0])
        assert same_bits(even, run(mlp(), data, partial, how, 20, speeds=[1.0, 1.0, 2.0, 4.0]))
        fewer = run(mlp(), data, partial, how, 20, speeds=[1.0, 2.0])
        assert fewer.samples == even.samples
        assert difference(fewer.parameters, even.parameters) > 1e-4


def test_one_worker_in_partial_rounds_with_a_plain_step_is_serial_sgd() -> None:
    alone = DiLoCo(1.0, 0.0, steps=5, flexible=False, participation="partial")
    ends = [run(mlp(), shards(12, 12, 12), each, recipe(4), 20, speeds=[1.0]) for each in (alone, FedBuff(1, steps=5))]
    assert [end.state.version for end in ends] == [end.memory.updates for end in ends] == [12, 12]
    assert same_bits(*ends)


SYNCHRONOUS = [name for name, kind in discover().items() if not kind.asynchronous]


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_late_answers_to_tasks_that_were_given_again_change_no_bit_of_a_synchronous_method(name: str) -> None:
    problem, how, ends = Quadratic(), Recipe(learning_rate=0.1, batch_size=8), []
    for late in (False, True):
        strategy = build(name, {"flexible": False} if "flexible" in settings(discover()[name]) else {})
        coordinator = Coordinator(strategy, plan_of_quadratic(problem, how), problem.layout, np.zeros(6))
        ends.append(one_worker_and_a_late_one(coordinator, problem, late))
        assert (sum(entry.rejected for entry in coordinator.memory.ledger.values()) > 0) == late
    assert ends[0] == ends[1]


def test_slow_workers_take_fewer_steps_where_tasks_are_flexible() -> None:
    taken: dict[str, list[int]] = {"w0": [], "w1": []}

    def watch(coordinator: Coordinator, arrival: Arrival) -> None:
        if isinstance(arrival.event, Returned):
            taken[arrival.event.worker].append(arrival.event.report.steps)

    end = run(mlp(), shards(12, 12), FedAvg(steps=20), recipe(4), 200, speeds=[1.0, 4.0], watch=watch)
    assert end.memory.samples == end.plan.budget
    assert max(taken["w0"]) == 5
    assert max(taken["w1"]) == 20


# Proximal terms


@nets
def test_fedprox_without_pull_is_fedavg_one_step_feels_no_pull_and_five_differ(net: Any) -> None:
    data, how = shards(5, 9, 20), recipe(4)
    average = run(net(), data, FedAvg(steps=5), how, 20)
    assert same_bits(run(net(), data, FedProx(mu=0.0, steps=5), how, 20), average)
    single = [run(net(), data, FedProx(mu=mu, steps=1), how, 20) for mu in (0.0, 5.0)]
    assert difference(single[0].parameters, single[1].parameters) < EXACT
    assert difference(run(net(), data, FedProx(mu=1.0, steps=5), how, 20).parameters, average.parameters) > 1e-3


def test_fedprox_is_the_first_round_of_admm() -> None:
    data = shards(12, 12, 12)
    prox = run(mlp(), data, FedProx(mu=0.3, steps=10, flexible=False), recipe(4), 10)
    consensus = run(mlp(), data, ADMM(rho=0.3, relaxation=1.0, rounds=1), recipe(4), 10)
    assert difference(prox.parameters, consensus.parameters) < EXACT


# Outer optimizers


@nets
def test_diloco_with_a_plain_step_of_1_is_local_sgd_and_with_momentum_differs(net: Any) -> None:
    data, how = shards(12, 12, 12, 12), recipe(4)
    local = run(net(), data, LocalSGD(steps=5), how, 20)
    assert same_bits(run(net(), data, DiLoCo(1.0, 0.0, steps=5, flexible=False), how, 20), local)
    assert difference(run(net(), data, FedAvg(5, False), how, 20).parameters, local.parameters) < EXACT
    assert difference(run(net(), data, DiLoCo(steps=5, flexible=False), how, 20).parameters, local.parameters) > 1e-2


@nets
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_diloco_of_single_steps_is_large_batch_nesterov_for_any_number_of_workers(net: Any, workers: int) -> None:
    data = shards(*[12] * workers)
    end = run(net(), data, DiLoCo(0.7, 0.9, steps=1), recipe(4), ROUNDS)
    stream = merged([batches(end, data, number, 4) for number in range(workers)])
    large = descend(net(), stream, ROUNDS, sgd(0.7 * RATE, momentum=0.9, nesterov=True))
    assert difference(end.parameters, large) < 1e-11


@nets
@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(5),
        DiLoCo(steps=5),
        DiLoCo(steps=5, average="rda"),
        *(FedOpt(optimizer, steps=5) for optimizer in ("adam", "adagrad", "yogi")),  # type: ignore[arg-type]
    ],
)
def test_workers_with_the_same_data_are_one_worker(net: Any, strategy: AnyStrategy) -> None:
    (one,) = shards(12).values()
    data = dict.fromkeys(shards(1, 1, 1, 1), one)
    many = run(net(), data, strategy, recipe(), 20)
    alone = run(net(), dict(list(data.items())[:1]), strategy, recipe(), 20)
    assert difference(many.parameters, alone.parameters) < 1e-11


@nets
def test_diloco_of_one_worker_with_a_plain_step_is_lookahead(net: Any) -> None:
    data, H, eta = shards(21), 5, 0.5
    end = run(net(), data, DiLoCo(eta, 0.0, steps=H, flexible=False), recipe(4), 40)
    slow, model, stream = start(net()), net(), batches(end, data, 0, 4)
    for _ in range(8):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(slow.copy()), model.parameters())
        slow = slow + eta * (descend(model, stream, H, sgd(RATE)) - slow)
    assert difference(end.parameters, slow) < EXACT


# Without delay every asynchronous method is its synchronous twin


@nets
def test_a_buffer_of_as_many_updates_as_shards_is_fedavg_bit_for_bit_and_a_smaller_differs(net: Any) -> None:
    data, how = shards(12, 12, 12, 12), recipe(4)
    average = run(net(), data, FedAvg(5, False), how, 20)
    buffered = lockstep(net, data, FedBuff(4, steps=5, flexible=False, weights="samples"), how, 20)
    assert buffered.memory.staleness == 0
    assert same_bits(buffered, average)
    assert same_bits(lockstep(net, data, FedAvg(5, False), how, 20), average)
    assert difference(lockstep(net, data, FedBuff(2, steps=5), how, 20).parameters, average.parameters) > 1e-3


@nets
@pytest.mark.parametrize(
    "strategy", [FedBuff(4, steps=5), FedBuff(4, steps=5, a=1.0), StalenessAware(buffer=4, steps=5)]
)
def test_uniform_buffers_without_delay_are_local_sgd_bit_for_bit(net: Any, strategy: AnyStrategy) -> None:
    data, how = shards(5, 9, 20, 14), recipe(4)
    assert same_bits(lockstep(net, data, strategy, how, 20), run(net(), data, LocalSGD(5), how, 20))


ALONE = [
    FedAsync(alpha=1.0, steps=5),
    FedBuff(1, steps=5),
    StalenessAware(steps=5),
    Ringmaster(1.0, steps=5),
    DCASGD(factor=1.0, steps=5),
    DelayedNesterov(1.0, 0.0, period=1, steps=5),
]


@pytest.mark.parametrize("strategy", ALONE)
def test_one_worker_is_the_serial_method_bit_for_bit(strategy: AnyStrategy) -> None:
    data, how = shards(21), recipe(4)
    end = run(mlp(), data, strategy, how, 40)
    assert end.memory.updates == 8
    assert same_bits(end, run(mlp(), data, LocalSGD(5), how, 40))
    assert difference(end.parameters, run(mlp(), data, Serial(), how, 40).parameters) < EXACT


def test_delayed_nesterov_of_one_worker_and_period_1_is_diloco() -> None:
    data, how = shards(21), recipe(4)
    delayed = run(mlp(), data, DelayedNesterov(0.7, 0.9, period=1, steps=5), how, 40)
    assert difference(delayed.parameters, run(mlp(), data, DiLoCo(steps=5), how, 40).parameters) < 1e-11


# With delay


DELAYED = [FedAsync(), FedBuff(), StalenessAware(), Ringmaster(), DelayedNesterov(), DCASGD()]


@pytest.mark.parametrize("strategy", DELAYED)
def test_the_speed_of_workers_differs_in_an_asynchronous_method(strategy: AnyStrategy) -> None:
    data = shards(7, 12, 9, 4)
    ends = [run(mlp(), data, strategy, recipe(4), 40, speeds=s).parameters for s in ([1.0] * 4, [1.0, 2, 7, 40])]
    assert difference(*ends) > 1e-6


@pytest.mark.parametrize(("limit", "refused"), [(3, True), (100, False)])
def test_ringmaster_refuses_what_is_too_stale_and_trains_its_samples_again(limit: int, refused: bool) -> None:
    strategy, data, merged_late = Ringmaster(limit=limit, steps=5, flexible=False), shards(*[12] * 8), []

    def watch(coordinator: Coordinator, _: Arrival) -> None:
        merged_late.append(coordinator.state.staleness)

    end = run(mlp(), data, strategy, recipe(4), 40, speeds=[1.0, 10.0, 10.0], watch=watch)
    assert end.memory.samples == end.plan.budget
    assert (end.memory.rejected > 0) == refused
    assert (max(merged_late) <= 3) == refused
