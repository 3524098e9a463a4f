"""Every layer that programs are promised to know: five steps give PyTorch's update."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from layer_cases import IMAGE, LABELS, LAYERS, TIES, Head
from lowered import agree
from trainpool.lowering.graph import Graph
from trainpool.lowering.operators import TABLE
from trainpool.lowering.operators.base import Shaped
from trainpool.onnx_file import contents


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains_as_in_pytorch(name: str) -> None:
    LAYERS[name].agrees()


@pytest.mark.parametrize("name", TIES)
def test_of_equal_maxima_the_first_gets_the_gradient(name: str) -> None:
    lowered = TIES[name].agrees()
    assert "ScatterND" not in lowered.program.operators


def test_gradients_of_plain_layers_need_neither_indices_nor_scatter() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.GroupNorm(2, 4), nn.AvgPool2d(2))
    lowered = agree(Head(layers, IMAGE), IMAGE, LABELS, steps=1)
    operators = contents(lowered.files["train.onnx"]).operators
    assert not operators & {"ScatterND", "ScatterElements", "GatherND", "GatherElements", "Where", "TopK"}


@pytest.mark.parametrize("function", [torch.log1p, torch.expm1])
def test_logarithms_and_exponentials_keep_their_digits_everywhere(function: Callable[[Tensor], Tensor]) -> None:
    sizes = torch.logspace(-30, 38.5, 500, dtype=torch.float64).float()
    edges = torch.tensor([0.0, -1.0, -2.0, 17.0, 20.0, 88.0, 5e7, float("inf"), -float("inf"), float("nan")])
    x = torch.cat([sizes, -sizes, edges])
    graph = Graph()
    given = graph.input("x", x.shape, x.dtype)
    graph.outputs = [TABLE[function.__name__](graph, Shaped(x.shape), given)]
    session = onnxruntime.InferenceSession(graph.model("one").SerializeToString())
    found = np.asarray(session.run(None, {"x": x.numpy()})[0])
    np.testing.assert_allclose(found, function(x.double()).float().numpy(), rtol=1e-6, atol=1e-44)
