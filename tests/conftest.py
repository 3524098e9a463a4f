"""Shared pieces: a small experiment, a cache that all tests of one process use, Node.js and Chromium."""

import copy
import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

import trainpool as tp
from node import WEB, run
from trainpool.data import load
from trainpool.kernels.torch import TorchKernel
from trainpool.testing import InProcessPool

# No deadlines: a busy machine is no bug. The same examples every time: a failure here is a failure everywhere.
settings.register_profile("trainpool", deadline=None, derandomize=True)
settings.load_profile("trainpool")

# A shell starts what runs in its background with Ctrl+C ignored, and programs inherit it: tests of Ctrl+C would wait.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests promise to the bit holds on processors: a GPU adds up in another order each time. A named one is used.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the tests' own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def npm() -> str:
    """npm, with the packages of web/package-lock.json in place."""
    found, node = shutil.which("npm"), shutil.which("node")
    if found is None or node is None:
        pytest.skip("Node.js and npm are not installed: the browser's worker is not tested")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip("v\n")
    if tuple(map(int, version.split(".")[:2])) < (20, 19):
        pytest.skip(f"Node.js {version} is too old for the browser's tools: 20.19 or newer is needed")
    lock, done = WEB / "package-lock.json", WEB / "node_modules" / ".package-lock.json"
    with lock.open() as held:  # pytest's processes install once, not each
        fcntl.flock(held, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            run(found, "ci")
    return found


@pytest.fixture(scope="session")
def chromium() -> None:
    """Chromium is there."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if not any(map(shutil.which, names)) and "CHROMIUM" not in os.environ:
        pytest.skip("Chromium is not installed (or name it in CHROMIUM): the browser's kernel is not tested")


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


def in_process(experiment: tp.Experiment, cache: Path, **options: Any) -> InProcessPool:
    """A pool without processes that really trains an experiment whose data are arrays."""
    kernel = TorchKernel(copy.deepcopy(experiment.model), experiment.loss_function())
    test = dict(zip("xy", experiment.test, strict=True))
    return InProcessPool(kernel, lambda shard: load(cache / "shards", shard), test=test, **options)
