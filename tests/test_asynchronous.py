"""Exact equivalences of Downpour, and what event tapes and repeated answers must not change; in float64.

A name without a number means a largest difference of 1e-12 (`EXACT`); "differs" marks negative controls.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference import (
    EXACT,
    Vector,
    batches,
    conv,
    descend,
    difference,
    gradient,
    mlp,
    plan_of,
    put,
    run,
    sgd,
    shards,
    start,
    system,
)
from test_reducer import normal
from trainpool.coordinator import Coordinator
from trainpool.events import Asked, Event, Left, Rejected, Restarted, Returned, Send
from trainpool.journal import Journal, replay
from trainpool.kernels.torch import TorchKernel
from trainpool.messages import Recipe, Update
from trainpool.pace import Pace
from trainpool.strategies import ADMM, AnyStrategy, Downpour, ParallelSGD, Serial, build, discover, settings
from trainpool.testing import InProcessPool, Quadratic, simulate

RATE = 0.05
CONSTANT = Recipe(learning_rate=RATE, batch_size=4, schedule="constant")
nets = pytest.mark.parametrize("net", [conv, mlp])


def downpour(**changes: Any) -> Downpour:
    """Without the warm start, so that the rule holds from the first update."""
    return Downpour(**{"warm_start": 0.0} | changes)


@nets
@pytest.mark.parametrize("steps", [1, 5])
def test_one_worker_with_an_sgd_server_is_serial_sgd(net: Any, steps: int) -> None:
    data = shards(21)
    end = run(net(), data, downpour(steps=steps, server="sgd"), CONSTANT, 40)
    assert end.memory.updates == 40 // steps
    assert difference(end.parameters, descend(net(), batches(end, data, 0, 4), 40, sgd(RATE))) < EXACT


@pytest.mark.parametrize("server", ["sgd", "adagrad"])
def test_the_mean_is_adagrads_alone_and_plain_steps_go_as_far_as_the_worker_went(server: Any) -> None:
    data, steps, squares = shards(21), 5, []
    for accrue in ("sum", "mean"):
        strategy = downpour(steps=steps, server=server, warm_start=1.0, accrue=accrue)
        end = run(mlp(), data, strategy, CONSTANT, 40)
        assert difference(end.parameters, descend(mlp(), batches(end, data, 0, 4), 40, sgd(RATE))) < EXACT
        squares.append(end.state.squares)
    if server == "adagrad":
        assert difference(squares[0], steps**2 * squares[1]) < EXACT
    delta = normal(50)
    w = np.zeros(50)
    for accrue in ("sum", "mean"):
        assert difference(one_update(downpour(server="sgd", accrue=accrue), w, w, -delta), -delta) == 0
        divided = one_update(downpour(accrue=accrue, epsilon=1.0), w, w, -delta)
        g = delta / RATE / (5 if accrue == "mean" else 1)
        assert difference(divided, -0.01 * g / (np.abs(g) + 1)) < EXACT


@nets
@pytest.mark.parametrize("accrue", ["sum", "mean"])
def test_one_worker_with_an_adagrad_server_at_one_step_a_task_is_pytorchs_adagrad(net: Any, accrue: str) -> None:
    # At one step a task the worker's rate cancels. A large one lets no digit of a small gradient be lost in w - x.
    data, how = shards(21), Recipe(learning_rate=2.0**20, batch_size=4, schedule="constant")
    end = run(net(), data, downpour(steps=1, learning_rate=0.03, accrue=accrue), how, 40)
    alone = descend(
        net(), batches(end, data, 0, 4), 40, lambda parameters: torch.optim.Adagrad(parameters, lr=0.03, eps=1e-10)
    )
    assert difference(end.parameters, alone) < EXACT


@nets
def test_adagrad_of_accrued_gradients_differs_from_serial_adagrad(net: Any) -> None:
    data = shards(21)
    end = run(net(), data, downpour(steps=5, learning_rate=0.03), CONSTANT, 40)
    alone = descend(
        net(), batches(end, data, 0, 4), 40, lambda parameters: torch.optim.Adagrad(parameters, lr=0.03, eps=1e-10)
    )
    assert difference(end.parameters, alone) > 1e-2


@nets
def test_the_papers_literal_loop_differs_from_serial_sgd_and_from_the_task_form(net: Any) -> None:
    data, n = shards(21), 5
    end = run(net(), data, downpour(steps=n, server="sgd"), CONSTANT, 40)
    model, server = net(), start(net())
    local, accrued = server.copy(), np.zeros_like(server)
    for step, (x, y) in zip(range(40), batches(end, data, 0, 4), strict=False):
        if step % n == 0:
            local = server.copy()
        g = gradient(put(model, local), x, y)
        accrued += g
        local = local - RATE * g
        if step % n == 0:
            server, accrued = server - RATE * accrued, np.zeros_like(server)
    assert difference(end.parameters, server) > 1e-3


@nets
def test_the_warm_start_is_serial_sgd_and_the_squares_already_accumulate(net: Any) -> None:
    data = shards(21)
    end = run(net(), data, Downpour(steps=1, warm_start=1.0), CONSTANT, 12)
    stream = batches(end, data, 0, 4)
    assert difference(end.parameters, descend(net(), stream, 12, sgd(RATE))) < EXACT
    squares, model, w = np.zeros_like(end.parameters), net(), start(net())
    for _, (x, y) in zip(range(12), batches(end, data, 0, 4), strict=False):
        g = gradient(put(model, w), x, y)
        squares, w = squares + g * g, w - RATE * g
    assert difference(end.state.squares, squares) < EXACT


def one_update(strategy: AnyStrategy, w: Vector, before: Vector, end: Vector) -> Vector:
    """The parameters after an update that began at `before` meets a server that is at `w`."""
    state = strategy.init(w, plan_of(shards(4, 4), CONSTANT, 10))
    shard = next(iter(strategy.wanted(state)))
    return strategy.merge(state, shard, Update(before - end, 5, 20, 0.0, 0, 0, RATE)).parameters


def test_the_delta_form_is_the_mixing_form_when_fresh_and_differs_when_stale() -> None:
    generator = np.random.default_rng(0)
    w, stale, end = generator.normal(size=(3, 50))
    alpha = 0.6
    server = downpour(server="sgd", factor=alpha)
    assert difference(one_update(server, w, w, end), (1 - alpha) * w + alpha * end) < EXACT
    assert difference(one_update(server, w, stale, end), (1 - alpha) * w + alpha * end) > 0.1
    assert difference(one_update(server, w, stale, end), w - alpha * (stale - end)) < EXACT


def test_without_staleness_downpour_is_the_serial_method() -> None:
    data, ends = shards(9, 9, 9), []
    for strategy in (Serial(), downpour(server="sgd", steps=5)):
        coordinator = system(mlp(), data, strategy, CONSTANT, 12, pace=Pace(target=5.0))  # 5 steps at 1 a second
        coordinator.order.sort(key=lambda entry: [*data].index(entry[0].id))  # the order in which Serial asks
        coordinator.units = coordinator.index()
        kernel = TorchKernel(mlp(), torch.nn.functional.cross_entropy)
        assert simulate(coordinator, InProcessPool(kernel, data.__getitem__, workers=1)) == "finished"
        assert coordinator.memory.staleness == 0
        assert coordinator.memory.updates == 9
        ends.append(coordinator.parameters)
    assert difference(*ends) < EXACT


def test_many_workers_that_begin_a_warm_up_at_rate_0_do_not_stop_the_run() -> None:
    data = shards(*[12] * 8)
    warm = Recipe(learning_rate=0.1, batch_size=4, warmup=0.2)
    end = run(mlp(), data, downpour(), warm, 40)
    assert end.memory.rejected == 0


# Event tapes


STRATEGIES = [build(name, {"rounds": 6} if "rounds" in settings(kind) else {}) for name, kind in discover().items()]
all_strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=list(discover()))


class Taped(Coordinator):
    """A coordinator that hashes the parameters after every event."""

    def handle(self, event: Event, now: float, delta: Any = None, buffers: Any = None) -> Any:
        commands = super().handle(event, now, delta, buffers)
        self.tape = [*getattr(self, "tape", []), hashlib.sha256(self.parameters.tobytes()).hexdigest()]
        return commands


@all_strategies
def test_replaying_a_tape_gives_every_versions_hash_without_training(strategy: AnyStrategy, tmp_path: Path) -> None:
    data, speeds = shards(8, 12, 5, 9), [1.0, 2.5, 6.0]
    proto = system(conv(), data, strategy, CONSTANT, 12)
    vector = np.concatenate([proto.parameters, proto.buffers])
    live, again = (Taped(strategy, proto.plan, proto.layout, vector) for _ in range(2))
    journal = Journal(tmp_path, keep=True)
    journal.snapshot(live)
    kernel = TorchKernel(conv(), torch.nn.functional.cross_entropy)
    faults: dict[int, Any] = {2: "duplicate", 5: "nan", 7: "lose", 9: "leave"}
    pool = InProcessPool(kernel, data.__getitem__, speeds=speeds, fault=faults.get)
    pool.open()
    while not live.memory.done:
        for message in pool.poll(1.0):
            event, now = message.event, pool.now()  # type: ignore[union-attr]
            journal.append(event, now, message.delta, message.buffers)  # type: ignore[union-attr]
            for command in live.handle(event, now, message.delta, message.buffers):  # type: ignore[union-attr]
                if isinstance(command, Send):
                    pool.send(command)
    journal.close()
    replay(tmp_path, again)
    assert len(set(live.tape)) > 2
    assert again.tape == live.tape


@all_strategies
def test_answers_delivered_twice_or_thrice_change_no_bit(strategy: AnyStrategy) -> None:
    data, ends = shards(8, 12, 5), []
    for times in (1, 2, 3):
        coordinator = system(mlp(), data, strategy, CONSTANT, 10)
        kernel = TorchKernel(mlp(), torch.nn.functional.cross_entropy)
        pool = InProcessPool(kernel, data.__getitem__, speeds=[1.0, 2.0, 4.0])
        pool.open()
        while not coordinator.memory.done:
            for message in pool.poll(1.0):
                repeats = times if isinstance(message.event, Returned) else 1  # type: ignore[union-attr]
                for _ in range(repeats):
                    arrays = message.delta, message.buffers  # type: ignore[union-attr]
                    for command in coordinator.handle(message.event, pool.now(), *arrays):  # type: ignore[union-attr]
                        if isinstance(command, Send):
                            pool.send(command)
        ends.append(coordinator.parameters.tobytes())
    assert len(set(ends)) == 1


@pytest.mark.parametrize(
    "strategy",
    [ParallelSGD(rounds=4), ADMM(rounds=4), Serial(), downpour(steps=3), Downpour(steps=3, server="sgd")],
    ids=["parallel", "admm", "one", "downpour", "downpour-sgd"],
)
def test_late_answers_to_tasks_that_were_given_again_change_no_bit(strategy: AnyStrategy) -> None:
    problem = Quadratic()
    proto = Recipe(learning_rate=0.1, batch_size=8)
    ends = []
    for late in (False, True):
        coordinator = Coordinator(strategy, plan_of_quadratic(problem, proto), problem.layout, np.zeros(6))
        ends.append(one_worker_and_a_late_one(coordinator, problem, late))
        assert (sum(entry.rejected for entry in coordinator.memory.ledger.values()) > 0) == late
    assert ends[0] == ends[1]


def plan_of_quadratic(problem: Quadratic, recipe: Recipe) -> Any:
    """Twelve steps of each shard."""
    return plan_of({s: {"y": np.zeros(n)} for s, n in problem.sizes.items()}, recipe, 12)


def one_worker_and_a_late_one(coordinator: Coordinator, problem: Quadratic, late: bool) -> bytes:
    """Train with one good worker; where `late`, another takes a task at times and answers when it is overdue."""
    now, slow = 0.0, None
    while not coordinator.memory.done:
        if late and slow is None:
            slow = next((c for c in coordinator.handle(Asked("slow"), now) if isinstance(c, Send)), None)
            slow_answer = None if slow is None else answer(slow, problem)
            now += 10_000
            coordinator.handle(Asked("other"), now)
            coordinator.handle(Left("other"), now)
        for command in coordinator.handle(Asked("good"), now):
            if isinstance(command, Send) and command.worker == "good":
                event, delta = answer(command, problem)
                coordinator.handle(event, now + 1, delta, np.zeros(0))
        if slow is not None and slow_answer is not None and coordinator.memory.updates % 3 == 0:
            coordinator.handle(slow_answer[0], now + 2, slow_answer[1], np.zeros(0))
            slow = None
        now += 3
    return coordinator.parameters.tobytes()


def answer(send: Send, problem: Quadratic) -> tuple[Returned, Vector]:
    """What an honest worker returns."""
    out = np.empty_like(send.parameters)
    anchor = None if send.anchor is None else send.anchor.copy()
    report = problem.run(send.task, send.parameters.copy(), anchor, problem.data[send.task.shard], out)
    return Returned(send.worker, report), out


def test_an_answer_from_before_a_restart_is_refused() -> None:
    problem = Quadratic()
    coordinator = Coordinator(Serial(), plan_of_quadratic(problem, Recipe(batch_size=8)), problem.layout, np.zeros(6))
    (send,) = coordinator.handle(Asked("w"), 0.0)
    assert isinstance(send, Send)
    event, delta = answer(send, problem)
    coordinator.handle(Restarted(), 1.0)
    (rejected,) = [c for c in coordinator.handle(event, 2.0, delta, np.zeros(0)) if isinstance(c, Rejected)]
    assert rejected.reason == "this worker has no such task (any more)"
