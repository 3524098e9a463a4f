"""Outer optimizers on vectors, in float64, against PyTorch and the papers' loops.

A name without a number means a largest difference of 1e-12 (`EXACT`), or 1e-11 after many steps; "differs" marks
negative controls.
"""

from typing import Any

import numpy as np
import pytest
import torch

from reference import EXACT, Vector, difference
from test_reducer import SIZE, START, normal, pushes, rounds
from trainpool.strategies import DelayedNesterov, DiLoCo, FedOpt
from trainpool.strategies.outer import Outer, Rule
from trainpool.strategies.reducer import Reducer


def torch_steps(gradients: Vector, **options: Any) -> Vector:
    """Where PyTorch's SGD goes along given gradients `[number, SIZE]`."""
    w = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.SGD([w], **options)
    for g in gradients:
        w.grad = torch.from_numpy(g.copy())
        optimizer.step()
    return w.detach().numpy()


@pytest.mark.parametrize(("rule", "nesterov"), [("sgd", False), ("nesterov", True)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_outer_sgd_is_pytorchs(rule: Rule, nesterov: bool, momentum: float) -> None:
    deltas = normal(20, 3, SIZE)
    reducer = Reducer(weights="uniform", outer=Outer(rule, 0.7, momentum))
    expected = torch_steps(deltas.mean(1), lr=0.7, momentum=momentum, nesterov=nesterov and momentum > 0)
    assert difference(rounds(reducer, deltas), expected) < EXACT


def test_diloco_is_pytorchs_nesterov_on_the_mean_and_heavy_ball_differs() -> None:
    deltas = normal(20, 3, SIZE)
    assert (
        difference(rounds(DiLoCo(), deltas), torch_steps(deltas.mean(1), lr=0.7, momentum=0.9, nesterov=True)) < 1e-11
    )
    assert difference(rounds(DiLoCo(), deltas), torch_steps(deltas.mean(1), lr=0.7, momentum=0.9)) > 0.1


def test_delayed_nesterov_of_period_1_is_nesterov() -> None:
    deltas = normal(20, SIZE)
    found = pushes(DelayedNesterov(period=1, learning_rate=0.7, momentum=0.9), deltas)
    assert difference(found, torch_steps(deltas, lr=0.7, momentum=0.9, nesterov=True)) < 1e-11


@pytest.mark.parametrize("period", [2, 5])
def test_delayed_nesterov_at_the_end_of_periods_is_nesterov_on_their_means_and_within_differs(period: int) -> None:
    deltas = normal(4 * period, SIZE)
    strategy = DelayedNesterov(period=period, learning_rate=0.7, momentum=0.9)
    for blocks in (1, 2, 4):
        means = deltas[: blocks * period].reshape(blocks, period, SIZE).mean(1)
        expected = torch_steps(means, lr=0.7, momentum=0.9, nesterov=True)
        assert difference(pushes(strategy, deltas[: blocks * period]), expected) < 1e-11
    assert difference(pushes(strategy, deltas[:-1]), expected) > 1e-3


@pytest.mark.parametrize("c", [0.0, 0.1, 0.25])
def test_delayed_nesterov_is_the_papers_loop(c: float) -> None:
    deltas, N, beta, epsilon = normal(18, SIZE), 4, 0.9, 0.7
    w, m, D = START.copy(), np.zeros(SIZE), np.zeros(SIZE)
    for t, delta in enumerate(deltas):
        D = D + delta
        if (t + 1) % N == 0:
            m = beta * m + D / N
            w, D = w - epsilon * ((1 - c * N + c) * beta * m + delta / N), np.zeros(SIZE)
        else:
            w = w - epsilon * (c * beta * m + delta / N)
    found = pushes(DelayedNesterov(period=N, learning_rate=epsilon, momentum=beta, c=c), deltas)
    assert difference(found, w) < 1e-11


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "yogi"])
def test_fedopt_is_the_papers_loop(optimizer: Any) -> None:
    deltas, beta1, beta2, eta, tau = normal(20, 3, SIZE), 0.9, 0.99, 0.1, 0.01
    w, m, v = START.copy(), np.zeros(SIZE), np.full(SIZE, tau**2)
    for g in deltas.mean(1):
        m = beta1 * m + (1 - beta1) * g
        match optimizer:
            case "adam":
                v = beta2 * v + (1 - beta2) * g**2
            case "adagrad":
                v = v + g**2
            case "yogi":
                v = v - (1 - beta2) * g**2 * np.sign(v - g**2)
        w = w - eta * m / (np.sqrt(v) + tau)
    found = rounds(FedOpt(optimizer=optimizer, learning_rate=eta, beta1=beta1, beta2=beta2, tau=tau), deltas)
    assert difference(found, w) < EXACT


def test_fedadam_without_memory_steps_by_the_sign_or_is_fedavg_with_step_eta_over_tau() -> None:
    deltas = normal(1, 3, SIZE)
    mean = deltas[0].mean(0)
    sign = rounds(FedOpt(learning_rate=0.1, beta1=0, beta2=0, tau=1e-12), deltas)
    assert difference(sign, START - 0.1 * np.sign(mean)) < 1e-9
    plain = rounds(FedOpt(learning_rate=1e9, beta1=0, beta2=0, tau=1e9), deltas)
    assert difference(plain, START - mean) < 1e-8
    assert difference(sign, START - 0.1 * mean) > 1e-3
