"""The papers as for-loops (examples/naive) and the system give the same numbers, to 1e-12 in float64."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from reference import Data, batches, difference, run
from trainpool.coordinator import Coordinator
from trainpool.events import Returned
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.protocol import Arrival
from trainpool.strategies import ADMM, Downpour, ParallelSGD
from trainpool.testing.problems import shard_id

FOLDER = Path(__file__).parents[1] / "examples" / "naive"
EXACT = 1e-12
FEATURES = 65


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"naive_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits(*sizes: int) -> Data:
    """The first digits, cut into shards, with a column of ones for the bias."""
    x, y = load_digits(return_X_y=True)
    x = np.column_stack([x / 16, np.ones(len(x))])
    ends = np.cumsum(sizes)
    return {
        shard_id("digits", 0, i): {"x": x[end - size : end], "y": y[end - size : end]}
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, 10, bias=False).double()


def begin() -> np.ndarray:
    """The classifier's weights, `[10, FEATURES]`."""
    return classifier().weight.detach().numpy().copy()  # type: ignore[union-attr, operator]


class Rows:
    """`draw` of the examples: the rows that the system's tasks read."""

    def __init__(self, coordinator: Coordinator, data: Data, batch: int) -> None:
        numbered = {shard: {"x": np.arange(len(part["y"])), "y": part["y"]} for shard, part in data.items()}
        self.streams = [batches(coordinator, numbered, number, batch) for number in range(len(data))]

    def __call__(self, number: int) -> Iterator[np.ndarray]:
        return (rows for rows, _ in self.streams[number])


def as_list(data: Data) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(part["x"], part["y"]) for part in data.values()]


@pytest.mark.parametrize(("rounds", "sizes"), [(1, (50, 50, 50)), (6, (30, 75, 41, 60))])
def test_parallel_sgd(rounds: int, sizes: tuple[int, ...]) -> None:
    data, steps = digits(*sizes), 5
    recipe = Recipe(learning_rate=0.2, batch_size=8, schedule="constant")
    end = run(classifier(), data, ParallelSGD(rounds=rounds), recipe, rounds * steps, speeds=[1.0, 3.0])
    naive = load("parallel_sgd").train(begin(), as_list(data), Rows(end, data, 8), 0.2, rounds, steps)
    assert difference(end.parameters, naive.ravel()) < EXACT
    other = load("parallel_sgd").train(begin(), as_list(data), Rows(end, data, 8), 0.2, rounds, steps + 1)
    assert difference(end.parameters, other.ravel()) > 1e-4


@pytest.mark.parametrize("alpha", [1.0, 1.6])
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_admm(alpha: float, l2: float) -> None:
    data, rounds, steps = digits(30, 75, 41, 60), 8, 5
    recipe = Recipe(learning_rate=0.2, batch_size=0, schedule="constant")
    strategy = ADMM(rho=0.05, relaxation=alpha, l2=l2, rounds=rounds)
    end = run(classifier(), data, strategy, recipe, rounds * steps, speeds=[1.0, 3.0])
    naive = load("admm").train(begin(), as_list(data), 0.2, 0.05, alpha, l2, rounds, steps)
    assert difference(end.parameters, naive.ravel()) < EXACT
    other = load("admm").train(begin(), as_list(data), 0.2, 0.06, alpha, l2, rounds, steps)
    assert difference(end.parameters, other.ravel()) > 1e-4


@pytest.mark.parametrize("steps", [1, 4])
def test_downpour(steps: int) -> None:
    data, pushes = digits(50, 62, 47), []
    recipe = Recipe(learning_rate=0.1, batch_size=8, schedule="constant")
    strategy = Downpour(steps=steps, learning_rate=0.03, warm_start=0.0)

    def watch(coordinator: Coordinator, arrival: Arrival) -> None:
        if isinstance(arrival.event, Returned):
            pushes.append(coordinator.memory.leases[arrival.event.report.task].task.shard)

    pace = Pace(speculate=False)  # every push is then merged
    end = run(classifier(), data, strategy, recipe, 10 * steps, speeds=[1.0, 2.6, 7.1], pace=pace, watch=watch)
    assert end.memory.staleness > 0
    numbers = [list(data).index(shard) for shard in pushes]  # a shard is fetched again as soon as it was pushed
    naive = load("downpour").train(begin(), as_list(data), Rows(end, data, 8), numbers, 0.1, 0.03, steps)
    assert difference(end.parameters, naive.ravel()) < EXACT
    other = load("downpour").train(begin(), as_list(data), Rows(end, data, 8), numbers[::-1], 0.1, 0.03, steps)
    assert difference(end.parameters, other.ravel()) > 1e-4


@pytest.mark.parametrize("name", ["parallel_sgd", "admm", "downpour"])
def test_the_script_is_short_and_prints_its_result(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60
    load(name).main()
    said = re.fullmatch(r"test accuracy (\d\.\d+)\n", capsys.readouterr().out)
    assert said
    assert 0.85 < float(said[1]) <= 1
