"""BatchNorm's statistics measured anew: on training data, before an evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trainpool as tp
from conftest import small_data
from trainpool import rng, training
from trainpool.kernels.protocol import Calibration
from trainpool.kernels.torch import TorchKernel, vector_of

SHARDS = {name: dict(zip("xy", small_data(60 + 20 * i, i), strict=True)) for i, name in enumerate("ab")}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.BatchNorm1d(8),
    )


def test_statistics_are_the_mean_over_the_batches_as_pytorch_updates_them_tolerance_1e_6() -> None:
    kernel = TorchKernel(network(), nn.functional.cross_entropy)
    vector = vector_of(kernel.model)
    vector[kernel.layout.trainable :] = 7.0  # what was there before does not matter
    calibration = Calibration(("a", "b"), batches=5, batch=16)
    buffers = kernel.recalibrate(vector, SHARDS.__getitem__, calibration)
    batches = []
    for number in range(5):
        data = SHARDS["ab"[number % 2]]
        (rows,) = rng.batches(0, len(data["y"]), number // 2 * 16, 1, 16)
        batches.append(torch.from_numpy(data["x"][rows]).float() / 255)
    model = network().eval()
    model[3].p = 0.0  # PyTorch's own function lets dropout disturb the statistics
    torch.optim.swa_utils.update_bn(batches, model)
    np.testing.assert_allclose(buffers, vector_of(model)[kernel.layout.trainable :], rtol=0, atol=1e-6)


def test_other_statistics_come_from_other_batches_and_training_goes_on_as_before() -> None:
    kernel = TorchKernel(network(), nn.functional.cross_entropy)
    vector = vector_of(kernel.model)
    few, many = (kernel.recalibrate(vector, SHARDS.__getitem__, Calibration(("a",), n, 16)) for n in (1, 3))
    assert not np.allclose(few, many)
    assert [m.momentum for m in kernel.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [0.1, 0.1]
    np.testing.assert_array_equal(vector, vector_of(network()))


def test_a_run_evaluates_and_keeps_the_recalibrated_model(
    experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    pool = tp.LocalPool(2, threads=1)
    result = tp.train(experiment, pool=pool, epochs=2, recalibrate=6, out=tmp_path / "run", cache=cache, quiet=True)
    x, y = (torch.from_numpy(part) for part in small_data(200, 1))
    with torch.inference_mode():
        output = result.model.eval()(x.float() / 255)
    assert nn.functional.cross_entropy(output, y).item() == pytest.approx(result.summary["test_loss"], rel=1e-4)
    counter = next(value for name, value in result.model.state_dict().items() if name.endswith("num_batches_tracked"))
    assert counter == 6


def test_a_negative_number_of_batches_is_refused(experiment: tp.Experiment, tmp_path: Path) -> None:
    with pytest.raises(tp.ConfigError, match="recalibrate"):
        training.begin(experiment, out=tmp_path / "run", recalibrate=-1)
