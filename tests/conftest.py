"""Shared pieces: a small experiment, and a cache that all tests of one process use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

import trainpool as tp

# No deadlines: a busy machine is no bug. The same examples every time: a failure here is a failure everywhere.
settings.register_profile("trainpool", deadline=None, derandomize=True)
settings.load_profile("trainpool")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the tests' own."""
    return tmp_path_factory.mktemp("cache")


def small_data(samples: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bytes `[n, 1, 8, 8]` with one bright row, whose number is the label."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 8, samples)
    x = generator.integers(0, 120, (samples, 1, 8, 8), dtype=np.uint8)
    x[np.arange(samples), 0, y] += 100
    return x, y


@pytest.fixture
def experiment() -> tp.Experiment:
    """A small convolutional network with BatchNorm on `small_data`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 8))
    return tp.Experiment(net, small_data(), small_data(200, 1), name="small")
