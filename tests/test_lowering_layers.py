"""Every layer that programs are promised to know: five steps give PyTorch's update."""

import pytest
from torch import nn

from layer_cases import IMAGE, LABELS, LAYERS, TIES, Head
from lowered import agree
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
