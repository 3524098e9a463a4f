"""The networks: sizes, shapes, seeds and refusals."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d, relu

from trainpool.errors import ConfigError
from trainpool.models import NAMES, build


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "options", "count"),
    [
        ("cnn", (1, 28, 28), {}, 421_642),
        ("resnet20", (3, 32, 32), {}, 269_722),
        ("resnet20", (3, 32, 32), {"norm": "batch"}, 269_722),
        ("mlp", (1, 28, 28), {}, 269_322),
        ("logistic", (1, 28, 28), {}, 7_850),
        ("logistic", (5,), {}, 60),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, ...], options: dict[str, Any], count: int) -> None:
    assert parameters(build(name, shape, 10, **options)) == count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 9, 5), (2, 4, 4)])
def test_forward_and_backward(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape, 7)
    output = model(torch.rand(3, *shape))
    assert output.shape == (3, 7)
    assert output.isfinite().all()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_follow_the_seed_and_leave_the_global_state_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build(name, (3, 8, 8), 4, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for p, q in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    assert any(not torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


def test_pooling_before_relu_changes_nothing() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    first, second = relu(max_pool2d(a, 2)), max_pool2d(relu(b), 2)
    assert torch.equal(first, second)
    first.square().sum().backward()
    second.square().sum().backward()
    assert torch.equal(a.grad, b.grad)


def test_resnet_shortcut_pads_channels_with_zeros() -> None:
    block = build("resnet20", (3, 8, 8), 10).blocks[3]
    x = torch.rand(2, 16, 8, 8)
    y = block.shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == 0
    assert y[:, 24:].abs().sum() == 0


def test_resnet_has_twenty_weighted_layers() -> None:
    modules = build("resnet20", (3, 32, 32), 10).modules()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == 20


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_dense_models_take_any_shape(name: str) -> None:
    assert build(name, (6,), 3)(torch.rand(2, 6)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("resnet", (3, 8, 8), 10), {}, r"no model 'resnet' \(did you mean 'resnet20'\?\); there are: cnn, resnet20"),
        (("cnn", (784,), 10), {}, r"cnn needs images of shape \(C, H, W\), not samples of shape \(784,\); try mlp"),
        (("resnet20", (8, 8), 10), {}, r"resnet20 needs images of shape \(C, H, W\), not samples of shape \(8, 8\)"),
        (("cnn", (1, 3, 8), 10), {}, "needs at least 4x4 pixels, not 8x3"),
        (("mlp", (1, 3, 8), 0), {}, "mlp needs at least 1 class, not 0"),
        (("mlp", (), 2), {}, r"mlp needs samples of at least one number each, not of shape \(\)"),
        (("cnn", (1, 8, 8), 10), {"norm": "group"}, "cnn has no option 'norm'; it has no options"),
        (("resnet20", (1, 8, 8), 10), {"norms": 1}, r"'norms' \(did you mean 'norm'\?\); its options are: norm"),
        (("resnet20", (1, 8, 8), 10), {"norm": "bach"}, r"no norm 'bach' \(did you mean 'batch'\?\); there are: group"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(*arguments, **options)
