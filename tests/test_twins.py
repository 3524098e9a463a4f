"""Without delay every asynchronous method is its synchronous twin, bit for bit; what bounds and copies must not change.

"Without delay" is said of two schedules. *In step*: M workers begin at the same parameters and the next M tasks begin
when all have answered. A server that merges at once then takes M steps from one point, one after another; its twin is
the loop that does so in the same order, and, to 1e-11, where the rule is linear, a round that steps along the deltas'
sum. *In turn*: each of M workers begins when the one before was merged; the twin is serial SGD. "differs" marks
negative controls.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from reference import EXACT, Data, Vector, descend, difference, mlp, run, sgd, shards, start, system, together
from test_modern import RATE, lockstep, nets, recipe, same_bits
from trainpool.coordinator import Coordinator
from trainpool.events import Asked, Returned, Send
from trainpool.kernels.torch import TorchKernel
from trainpool.messages import Recipe, ShardId
from trainpool.pace import Pace
from trainpool.pools.protocol import Arrival
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
    LocalSGD,
    ParallelSGD,
    Ringmaster,
    Serial,
    StalenessAware,
)

M, STEPS = 4, 5
DATA = shards(12, 12, 12, 12)
Step = Callable[[ShardId, Vector], None]
"""What a server does with one shard's delta, in place."""


def plain(w: Vector, factor: float) -> Step:
    """w ← w - factor·Δ."""

    def step(_: ShardId, delta: Vector) -> None:
        w[:] = w - factor * delta

    return step


def adagrad(w: Vector, gamma: float) -> Step:
    """G ← G + g²; w ← w - γ g/(√G + ε), g the sum of a task's gradients."""
    G = np.zeros_like(w)

    def step(_: ShardId, delta: Vector) -> None:
        g = delta * (1 / RATE)
        G[:] = G + g * g
        w[:] = w - gamma * g / (np.sqrt(G) + 1e-10)

    return step


def nesterov(w: Vector, eta: float, mu: float) -> Step:
    """Nesterov on the mean of M deltas, each applied when it comes, and the momentum with the last."""
    m, D, seen = np.zeros_like(w), np.zeros_like(w), [0]

    def step(_: ShardId, delta: Vector) -> None:
        seen[0] += 1
        D[:] = D + delta
        move = delta / M
        if seen[0] % M == 0:
            m[:] = mu * m + D / M
            D[:] = 0
            move = move + mu * m
        w[:] = w - eta * move

    return step


def elastic(w: Vector, beta: float) -> Step:
    """A replica moves to where its task ended, then it and the centre attract each other."""
    replicas = {shard: w.copy() for shard in DATA}

    def step(shard: ShardId, delta: Vector) -> None:
        x = replicas[shard] - delta
        d = beta / M * (x - w)
        replicas[shard], w[:] = x - d, w + d

    return step


def downpour(**settings: Any) -> Downpour:
    """Without the warm start, in which one replica trains alone."""
    return Downpour(steps=STEPS, warm_start=0.0, **settings)


IN_STEP = {
    "fedasync": (FedAsync(0.6, "constant", steps=STEPS), lambda w: plain(w, 0.6)),
    "ringmaster": (Ringmaster(0.5, steps=STEPS), lambda w: plain(w, 0.5)),
    "dc-asgd": (DCASGD(strength=0.0, factor=0.3, steps=STEPS), lambda w: plain(w, 0.3)),
    "downpour-sgd": (downpour(server="sgd", factor=0.5), lambda w: plain(w, 0.5)),
    "downpour": (downpour(learning_rate=0.02), lambda w: adagrad(w, 0.02)),
    "delayed-nesterov": (DelayedNesterov(0.7, 0.9, period=M, steps=STEPS), lambda w: nesterov(w, 0.7, 0.9)),
    "easgd": (EASGD(0.9, steps=STEPS), lambda w: elastic(w, 0.9)),
}


@nets
@pytest.mark.parametrize("name", IN_STEP)
def test_in_step_an_asynchronous_method_is_the_loop_over_rounds_bit_for_bit(net: Any, name: str) -> None:
    strategy, twin = IN_STEP[name]
    tape: list[list[tuple[ShardId, Vector, Vector]]] = []
    end = lockstep(net, DATA, strategy, recipe(4), 20, tape=tape)
    assert end.memory.samples == end.plan.budget
    assert [len(tasks) for tasks in tape] == [M] * (20 // STEPS)
    w = start(net())
    step = twin(w)
    for tasks in tape:
        if name != "easgd":  # whose tasks begin at the replicas
            assert all(begun.tobytes() == w.tobytes() for _, begun, _ in tasks)
        for shard, _, delta in tasks:
            step(shard, delta)
    assert end.parameters.tobytes() == w.tobytes()


LINEAR = {
    "fedasync": (0.6 * M, 0.0),
    "ringmaster": (0.5 * M, 0.0),
    "dc-asgd": (0.3 * M, 0.0),
    "downpour-sgd": (0.5 * M, 0.0),
    "delayed-nesterov": (0.7, 0.9),
}
"""The outer rate and momentum of a round's mean that do the same."""


@nets
@pytest.mark.parametrize("name", LINEAR)
def test_in_step_a_linear_rule_is_a_round_along_the_sum_and_with_delay_differs(net: Any, name: str) -> None:
    strategy, _ = IN_STEP[name]
    eta, mu = LINEAR[name]
    rounds = run(net(), DATA, DiLoCo(eta, mu, steps=STEPS, flexible=False), recipe(4), 20)
    assert difference(lockstep(net, DATA, strategy, recipe(4), 20).parameters, rounds.parameters) < 1e-11
    late = run(net(), DATA, strategy, recipe(4), 20, speeds=[1.0, 2.0, 7.0, 40.0])
    assert difference(late.parameters, rounds.parameters) > 1e-4


def in_turn(net: Any, data: Data, strategy: AnyStrategy, how: Recipe, steps: int) -> Coordinator:
    """A run whose workers begin one after another, each when the one before was merged."""
    coordinator = system(net(), data, strategy, how, steps, pace=Pace(target=float(STEPS)))
    coordinator.order.sort(key=lambda entry: [*data].index(entry[0].id))  # the order in which Serial asks
    coordinator.units = coordinator.index()
    kernel, trainable, now = TorchKernel(net(), torch.nn.functional.cross_entropy), coordinator.layout.trainable, 0.0
    while not coordinator.memory.done:
        worker = f"w{int(now) % len(data)}"
        for send in [c for c in coordinator.handle(Asked(worker), now) if isinstance(c, Send)]:
            out, vector = np.empty(coordinator.layout.size), np.concatenate([send.parameters, send.buffers])
            report = kernel.run(send.task, vector, None, data[send.task.shard], out)
            report = msgspec.structs.replace(report, seconds=float(report.steps))
            coordinator.handle(Returned(worker, report), now, out[:trainable], out[trainable:])
        now += 1
    assert coordinator.memory.staleness == 0
    return coordinator


@pytest.mark.parametrize(
    "strategy",
    [
        FedAsync(1.0, steps=STEPS, flexible=False),
        FedBuff(1, steps=STEPS, flexible=False),
        StalenessAware(steps=STEPS, flexible=False),
        Ringmaster(1.0, steps=STEPS, flexible=False),
        DelayedNesterov(1.0, 0.0, period=1, steps=STEPS, flexible=False),
        downpour(server="sgd"),
        *(DCASGD(strength=s, factor=1.0, steps=STEPS, flexible=False) for s in (0.0, 0.04, 100.0)),
    ],
)
def test_in_turn_every_method_is_serial_sgd_bit_for_bit(strategy: AnyStrategy) -> None:
    """DC-ASGD for every strength: there is no delay to correct."""
    ends = [in_turn(mlp, DATA, each, recipe(4), 20) for each in (strategy, Serial())]
    assert [end.memory.updates for end in ends] == [M * 20 // STEPS] * 2
    assert same_bits(*ends)


# Buffers and bounds


@nets
@pytest.mark.parametrize("local", [RATE, 0.01])
def test_a_full_buffer_of_single_examples_is_a_batch_of_them_at_the_rates_product(net: Any, local: float) -> None:
    """FedBuff on K users of one example each, with η_server = η/γ: the mean has divided by K already."""
    data, eta = shards(*[1] * 6), 0.05
    how = recipe(1, learning_rate=local)
    end = lockstep(net, data, FedBuff(6, eta / local, steps=1), how, 12)
    batch = together(data)
    assert difference(end.parameters, descend(net(), iter([batch] * 12), 12, sgd(eta))) < EXACT
    assert difference(end.parameters, descend(net(), iter([batch] * 12), 12, sgd(eta / 6))) > 1e-3


def test_a_staleness_bound_of_0_is_bulk_synchronous_and_no_bound_is_downpour_bit_for_bit() -> None:
    """SSP's ends."""
    how, speeds = recipe(4), [1.0, 2.0, 7.0, 40.0]
    strategy = FedBuff(M, steps=STEPS, flexible=False)
    bound = lockstep(mlp, DATA, strategy, how, 20, pace=Pace(limit=0))
    assert bound.memory.rejected == 0
    assert same_bits(bound, run(mlp(), DATA, LocalSGD(STEPS), how, 20))
    free = run(mlp(), DATA, downpour(server="sgd", factor=0.5), how, 20, speeds=speeds)
    assert free.memory.staleness > 0
    for limit in (10**6, 3):
        strategy = Ringmaster(0.5, limit=limit, steps=STEPS, flexible=False)
        end = run(mlp(), DATA, strategy, how, 20, speeds=speeds)
        assert (end.parameters.tobytes() == free.parameters.tobytes()) == (limit > 3)


def test_with_a_staleness_bound_of_0_every_merged_update_began_at_the_parameters_that_it_meets() -> None:
    w, merged = start(mlp()), [0]

    def watch(coordinator: Coordinator, arrival: Arrival) -> None:
        nonlocal w
        assert coordinator.parameters.tobytes() == w.tobytes()
        if isinstance(arrival.event, Returned):
            task = coordinator.memory.leases[arrival.event.report.task].task
            if task.version == coordinator.state.version:
                assert arrival.delta is not None
                w, merged[0] = w - 0.5 * arrival.delta, merged[0] + 1

    strategy, pace = downpour(server="sgd", factor=0.5), Pace(limit=0, speculate=False)
    end = run(mlp(), DATA, strategy, recipe(4), 20, speeds=[1.0, 2.0, 7.0, 40.0], pace=pace, watch=watch)
    assert end.memory.rejected > 0
    assert end.memory.staleness == 0
    assert merged[0] == end.memory.updates
    assert end.parameters.tobytes() == w.tobytes()


@pytest.mark.parametrize(
    "strategy", [ParallelSGD(rounds=4), ADMM(rounds=4), FedAvg(5, False), LocalSGD(5), DiLoCo(steps=5, flexible=False)]
)
def test_copies_of_late_units_change_no_bit_of_a_synchronous_method(strategy: AnyStrategy) -> None:
    found = []
    for speculate in (False, True):
        pace = Pace(speculate=speculate)
        end = run(mlp(), DATA, strategy, recipe(4), 20, speeds=[40.0, 30.0, 1.0, 2.0], pace=pace)
        assert (end.memory.copies > 0) == speculate
        found.append(end)
    assert same_bits(*found)
