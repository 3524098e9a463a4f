"""Losses against values and gradients worked out by hand."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from trainpool.errors import ConfigError, ModelError
from trainpool.kernels.losses import NAMES, cross_entropy, half_squared_error, mse, resolve

OUTPUT = [[0.2, -1.0, 0.7], [1.5, 0.0, -0.3]]


def output() -> Tensor:
    return torch.tensor(OUTPUT, dtype=torch.float64, requires_grad=True)


def softmax() -> np.ndarray:
    e = np.exp(np.array(OUTPUT))
    return e / e.sum(1, keepdims=True)


ONE_HOT = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
MIXED = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
TARGETS = [
    pytest.param(torch.tensor([2, 0]), ONE_HOT, id="labels"),
    pytest.param(torch.from_numpy(MIXED), MIXED, id="distribution"),
]


@pytest.mark.parametrize(("target", "t"), TARGETS)
def test_cross_entropy(target: Tensor, t: np.ndarray) -> None:
    o, p = output(), softmax()
    loss = cross_entropy(o, target)
    loss.backward()
    assert loss.item() == pytest.approx(-(t * np.log(p)).sum() / 2, rel=1e-14)
    np.testing.assert_allclose(o.grad, (p - t) / 2, rtol=1e-12)


@pytest.mark.parametrize(("target", "t"), TARGETS)
def test_half_squared_error(target: Tensor, t: np.ndarray) -> None:
    o, p = output(), softmax()
    loss = half_squared_error(o, target)
    loss.backward()
    assert loss.item() == pytest.approx(((t - p) ** 2).sum() / 2 / 2, rel=1e-14)
    # d/do_j ½Σ(p_k - t_k)² = p_j·((p_j - t_j) - Σ_k p_k·(p_k - t_k)), and half of it for a batch of two
    inner = (p * (p - t)).sum(1, keepdims=True)
    np.testing.assert_allclose(o.grad, p * (p - t - inner) / 2, rtol=1e-12)


def test_half_squared_error_of_an_even_guess() -> None:
    # p = (½, ½): ½·((1 - ½)² + (0 - ½)²) = ¼
    assert half_squared_error(torch.zeros(3, 2), torch.tensor([0, 1, 1])).item() == 0.25


def test_mse() -> None:
    o, t = output(), torch.ones(2, 3, dtype=torch.float64)
    loss = mse(o, t)
    loss.backward()
    assert loss.item() == pytest.approx(((np.array(OUTPUT) - 1) ** 2).mean(), rel=1e-14)
    np.testing.assert_allclose(o.grad, 2 * (np.array(OUTPUT) - 1) / 6, rtol=1e-12)


def test_mse_of_single_outputs_does_not_broadcast() -> None:
    assert mse(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])).item() == 2.0
    assert mse(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 4])).item() == 2.0
    with pytest.raises(ModelError, match=r"the model gives \(2, 3\) and the data have \(2,\)"):
        mse(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("name", NAMES)
def test_names_resolve_to_functions_that_can_be_sent_to_a_process(name: str) -> None:
    loss = resolve(name)
    assert pickle.loads(pickle.dumps(loss)) is loss
    assert resolve(loss) is loss


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"no loss 'cross-entropie' \(did you mean 'cross-entropy'\?\); there are: c"):
        resolve("cross-entropie")
    with pytest.raises(ConfigError, match="no loss 3; there are"):
        resolve(3)  # type: ignore[arg-type]
