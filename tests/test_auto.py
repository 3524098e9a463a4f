"""What `auto` chooses, and that a run keeps it."""

from pathlib import Path

import pytest

import trainpool as tp
from trainpool import auto, training
from trainpool.auto import BOLD, GENTLE, LEAST, MOST, choose
from trainpool.errors import ConfigError
from trainpool.pools.protocol import Conditions
from trainpool.strategies import DiLoCo, Serial


def chosen(conditions: Conditions, size: int = 0) -> DiLoCo:
    strategy = choose(conditions, size).strategy
    assert isinstance(strategy, DiLoCo)
    return strategy


def test_one_machine_needs_no_merging() -> None:
    assert choose(Conditions((5.0,)), 0).strategy == Serial()


@pytest.mark.parametrize("n", [2, 3, 4, 10])
def test_a_round_moves_the_model_as_far_as_its_steps_together(n: int) -> None:
    method = chosen(Conditions((1.0,) * n))
    assert method.learning_rate / (1 - method.momentum) == pytest.approx(n, rel=1e-3)


def test_momentum_and_rate_have_limits() -> None:
    method = chosen(Conditions((1.0,) * 1000))
    assert (method.momentum, method.learning_rate) == (GENTLE, BOLD)


@pytest.mark.parametrize(
    ("slowest", "travel", "size", "steps"),
    [
        (1.0, (0.0, 0.0), 0, LEAST),
        (0.125, (0.0, 0.0), 0, 8),
        (0.125, (0.0, 3.0), 0, 8),
        (0.125, (0.0, 10.0), 0, 20),
        (1.0, (1e-6, 2.0), 3_000_000, 10),
        (1e-9, (0.0, 0.0), 0, MOST),
    ],
)
def test_the_slowest_has_a_step_to_do_and_the_way_is_shorter_than_the_work(
    slowest: float, travel: tuple[float, float], size: int, steps: int
) -> None:
    assert chosen(Conditions((1.0, slowest), travel), size).steps == steps


def test_rounds_of_local_processes_are_long_enough_to_pay_for_handing_tasks_over() -> None:
    assert chosen(tp.LocalPool(2).conditions(batch=32)).steps == 16


def test_a_simulated_pool_tells_of_its_lines() -> None:
    pool = tp.SimulatedPool(tp.fleet(4, spread=4, speed=100, bandwidth=(8e6, 16e6), latency=0.25))
    conditions = pool.conditions(batch=10)  # 0.1 s a step of the fastest
    assert sorted(conditions.speeds)[-1] == 100
    assert conditions.travel == pytest.approx((1.5e-6 / 0.1, 5.0))
    assert choose(conditions, 1_000_000).reason.startswith("4 machines, the fastest 4 times as fast")


def test_settings_go_with_a_named_strategy_alone() -> None:
    with pytest.raises(ConfigError, match="auto chooses the settings itself; to set steps, name the strategy"):
        auto.named("auto", {"steps": "3"})


def test_a_run_keeps_what_was_chosen_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    x, y = torch.randn(64, 3), torch.arange(64) % 2
    made = tp.Experiment(torch.nn.Linear(3, 2), (x, y))
    pool = tp.SimulatedPool(tp.fleet(3, spread=2), processes=1)
    run = training.begin(made, out=tmp_path / "run", pool=pool, epochs=1, cache=tmp_path / "cache")
    assert isinstance(run.strategy, DiLoCo)
    assert (run.config.strategy, run.config.settings["steps"]) == ("diloco", 2)
    assert run.config.reason.startswith("3 machines")
    training.carry_on(run)
    assert "auto chose diloco for 3 machines, the fastest 2 times as fast" in capsys.readouterr().err
