"""DiLoCo and FedBuff as for-loops (examples/naive) and the system give the same numbers, to 1e-12 in float64."""

import re

import pytest

from reference import EXACT, difference, run
from test_naive import FOLDER, Rows, as_list, begin, classifier, digits, load
from trainpool.coordinator import Coordinator
from trainpool.events import Returned
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.protocol import Arrival
from trainpool.strategies import DiLoCo, FedBuff

RECIPE = Recipe(learning_rate=0.1, batch_size=8, schedule="constant")


@pytest.mark.parametrize(("eta", "mu"), [(0.7, 0.9), (1.0, 0.0)])
def test_diloco(eta: float, mu: float) -> None:
    data, rounds, steps = digits(30, 75, 41, 60), 6, 5
    strategy = DiLoCo(eta, mu, steps=steps, flexible=False)
    end = run(classifier(), data, strategy, RECIPE, rounds * steps, speeds=[1.0, 3.0])
    naive = load("diloco").train(begin(), as_list(data), Rows(end, data, 8), 0.1, rounds, steps, eta, mu)
    assert difference(end.parameters, naive.ravel()) < EXACT
    other = load("diloco").train(begin(), as_list(data), Rows(end, data, 8), 0.1, rounds, steps, eta, mu + 0.05)
    assert difference(end.parameters, other.ravel()) > 1e-4


@pytest.mark.parametrize("K", [1, 3, 4])
def test_fedbuff(K: int) -> None:
    data, steps, pushes = digits(50, 62, 47), 4, []
    strategy = FedBuff(K, 0.8, steps=steps, flexible=False)

    def watch(coordinator: Coordinator, arrival: Arrival) -> None:
        if isinstance(arrival.event, Returned):
            pushes.append(coordinator.memory.leases[arrival.event.report.task].task.shard)

    speeds, pace = [1.0, 2.6, 7.1], Pace(speculate=False)
    end = run(classifier(), data, strategy, RECIPE, 10 * steps, speeds=speeds, pace=pace, watch=watch)
    assert end.memory.staleness > 0
    numbers = [list(data).index(shard) for shard in pushes]  # a shard is fetched again as soon as it was pushed
    naive = load("fedbuff").train(begin(), as_list(data), Rows(end, data, 8), numbers, 0.1, steps, K, 0.8)
    assert difference(end.parameters, naive.ravel()) < EXACT
    other = load("fedbuff").train(begin(), as_list(data), Rows(end, data, 8), numbers, 0.1, steps, K + 1, 0.8)
    assert difference(end.parameters, other.ravel()) > 1e-4


@pytest.mark.parametrize("name", ["diloco", "fedbuff"])
def test_the_script_is_short_and_prints_its_result(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60
    load(name).main()
    said = re.fullmatch(r"test accuracy (\d\.\d+)\n", capsys.readouterr().out)
    assert said
    assert 0.85 < float(said[1]) <= 1
