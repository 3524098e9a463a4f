"""Whole runs through the public interface, with real worker processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import trainpool as tp
from conftest import small_data
from trainpool import strategies, training
from trainpool.config import read_config
from trainpool.coordinator import Coordinator
from trainpool.journal import replay
from trainpool.kernels.torch import layout_of, vector_of
from trainpool.record import read_metrics
from trainpool.strategies import Plan


@pytest.mark.parametrize("name", strategies.discover())
def test_every_strategy_trains_and_leaves_its_files(
    name: str, experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    start = vector_of(experiment.model).copy()
    recipe = tp.Recipe(batch_size=16, learning_rate=0.1)
    pool = tp.LocalPool(1 if name == "serial" else 2, threads=1)
    result = tp.train(
        experiment, strategy=name, recipe=recipe, pool=pool, epochs=6, out=tmp_path / "run", cache=cache, quiet=True
    )
    assert result.summary["test_accuracy"] is not None
    assert result.summary["test_accuracy"] > 0.8
    assert result.summary["finished"]
    assert not np.array_equal(start, result.parameters)
    assert result.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result.history == read_metrics(tmp_path / "run")
    assert result.history[-1]["samples"] == result.summary["samples"]
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    state = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    experiment.model.load_state_dict(state)
    assert np.array_equal(vector_of(experiment.model), result.parameters)
    assert result.model is experiment.model
    counted = next(value for key, value in state.items() if key.endswith("num_batches_tracked"))
    assert counted.dtype == torch.int64
    assert counted > 0


def test_the_model_is_as_good_as_the_summary_says(experiment: tp.Experiment, cache: Path) -> None:
    pool = tp.LocalPool(2, threads=1)
    result = tp.train(experiment, recipe=tp.Recipe(batch_size=16), pool=pool, epochs=3, cache=cache, quiet=True)
    assert result.folder is None
    x, y = (torch.from_numpy(part) for part in small_data(200, 1))
    result.model.eval()
    with torch.inference_mode():
        output = result.model(x.float() / 255)
    assert (output.argmax(1) == y).float().mean().item() == pytest.approx(result.summary["test_accuracy"])
    rounded = pytest.approx(result.summary["test_loss"], rel=1e-4, abs=1e-6)
    assert nn.functional.cross_entropy(output, y).item() == rounded


def test_a_synchronous_run_gives_the_same_bits_twice_and_replays(
    experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    start = {key: value.clone() for key, value in experiment.model.state_dict().items()}
    vectors = []
    for number in range(2):
        experiment.model.load_state_dict(start)
        pool = tp.LocalPool(2, threads=1)
        strategy = tp.ParallelSGD(rounds=4)
        result = tp.train(
            experiment,
            strategy=strategy,
            pool=pool,
            epochs=2,
            out=tmp_path / str(number),
            cache=cache,
            quiet=True,
            keep_journal=True,
        )
        vectors.append(result.parameters.tobytes())
    assert vectors[0] == vectors[1]
    experiment.model.load_state_dict(start)
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    sizes = {shard["id"]: shard["samples"] for shard in config["train"]["shards"]}
    plan = Plan.of(sizes, tp.Recipe(), 2)
    fresh = Coordinator(strategy, plan, layout_of(experiment.model), vector_of(experiment.model))
    again = replay(tmp_path / "0", fresh)
    assert np.concatenate([again.parameters, again.buffers]).tobytes() == vectors[0]


def test_a_custom_loss_and_a_float_target(cache: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((300, 5)).astype(np.float32)
    y = x @ np.arange(1, 6, dtype=np.float32)[:, None]
    factor = 2.0  # a closure: the loss travels to the workers by value
    experiment = tp.Experiment(
        nn.Linear(5, 1), (x, y), (x, y), loss=lambda out, target: factor * ((out - target) ** 2).mean()
    )
    pool = tp.LocalPool(2, threads=1)
    result = tp.train(
        experiment, strategy="admm", pool=pool, recipe=tp.Recipe(batch_size=10), epochs=20, cache=cache, quiet=True
    )
    assert result.summary["test_accuracy"] is None
    assert result.summary["test_loss"] is not None
    assert result.summary["test_loss"] < 0.01


def test_without_test_data_nothing_is_evaluated(cache: Path) -> None:
    experiment = tp.Experiment(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), small_data(64))
    result = tp.train(experiment, pool=tp.LocalPool(1, threads=1), epochs=1, cache=cache, quiet=True)
    assert result.history == []
    assert result.summary["test_accuracy"] is None


def test_tensorboard_files(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    pool = tp.LocalPool(1, threads=1)
    tp.train(experiment, pool=pool, epochs=1, out=tmp_path / "run", cache=cache, tensorboard=True, quiet=True)
    assert any((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.Flatten()}, "no parameters"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, "labels run up to 7, but the model has 3 outputs"),
        ({"model": nn.Linear(5, 8)}, "did not pass through"),
        ({"loss": lambda out, target: out}, "must return one number"),
        ({"loss": lambda out, target: out.detach().sum()}, "does not depend on the model"),
        ({"loss": "cross-entrop"}, "did you mean 'cross-entropy'"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).half()}, "must be float32"),
        ({"train": 5}, "no data set"),
        ({"test": (small_data(1)[0], np.array([8]))}, "labels of the test data run up to 8, but the model has 8 "),
        ({"test": (np.ones((4, 1, 9, 9)), np.arange(4))}, r"shape \(2, 1, 9, 9\) of the test data did not pass"),
        ({"test": (small_data(4)[0], np.ones((4, 2)))}, "of the test data did not pass"),
    ],
)
def test_what_does_not_fit_is_said_at_once(change: dict, message: str, cache: Path) -> None:
    arguments = {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), "train": small_data(64)}
    with pytest.raises(tp.TrainpoolError, match=message) as caught:
        tp.train(tp.Experiment(**{**arguments, **change}), cache=cache, quiet=True)
    assert "\n" not in str(caught.value)


def test_test_data_need_only_pass_an_evaluation(cache: Path, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8))
    larger = np.zeros((1, 1, 12, 12), np.uint8), np.array([7])  # of one sample BatchNorm cannot take the variance
    experiment = tp.Experiment(net, small_data(64), larger)
    training.begin(experiment, pool=tp.LocalPool(1), out=tmp_path / "a", cache=cache)
    with pytest.raises(tp.DataError, match=r"test data are uint8 \(1, 12, 12\) and the training data uint8 \(1, 8"):
        training.begin(experiment, pool=tp.LocalPool(1), out=tmp_path / "b", cache=cache, kernel="onnx")


def test_a_loss_that_is_nan_stops_the_run_with_its_reason(cache: Path, tmp_path: Path) -> None:
    experiment = tp.Experiment(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)),
        small_data(64),
        loss=lambda out, target: out.sum() * float("nan"),
    )
    with pytest.raises(tp.RunError, match="the loss is nan at the first step: check the data and lower"):
        tp.train(experiment, pool=tp.LocalPool(1, threads=1), out=tmp_path / "run", cache=cache, quiet=True)


def test_a_folder_that_holds_a_run_is_left_alone(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(tp.RunError, match="trainpool resume"):
        tp.train(experiment, out=tmp_path, cache=cache, quiet=True)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_the_pace_decides_how_long_tasks_are_and_a_resumed_run_keeps_it(
    experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    pace = tp.Pace(target=0.5, probe=1, limit=3)
    pool = tp.SimulatedPool(tp.fleet(1, speed=80), processes=1)
    options = {"strategy": "serial", "recipe": tp.Recipe(batch_size=8), "cache": cache, "epochs": 1, "seed": 5}
    result = tp.train(experiment, pool=pool, pace=pace, quiet=True, **options)
    batches = round(len(experiment.sources()[0]) / 8)
    assert result.summary["updates"] == 1 + -(-(batches - 1) // 5)  # a probe, and tasks of half a second
    run = training.begin(experiment, out=tmp_path / "run", pool=tp.LocalPool(1, threads=1), pace=pace, **options)
    assert read_config(run.home).pace == {
        **{"target": 0.5, "probe": 1, "grace": 30.0, "first": 300.0, "spread": 6.0},
        **{"speculate": True, "limit": 3},
    }
    assert pace == tp.Pace(target=0.5, probe=1, limit=3)  # it measured nothing itself
    paces = []

    def watched(*arguments: Any, pace: tp.Pace, **others: Any) -> Coordinator:
        paces.append(pace)
        return Coordinator(*arguments, pace=pace, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Coordinator", watched)
        training.resume(run.home, quiet=True)
    assert (paces[0].target, paces[0].probe, paces[0].limit) == (0.5, 1, 3)


def test_a_simulated_run_with_churn_replays_to_the_same_bits(
    experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    start = {key: value.clone() for key, value in experiment.model.state_dict().items()}
    machines = tp.fleet(4, spread=3, speed=200, churn=0.3, session=1.0, lost=0.05, duplicated=0.05, seed=2)
    strategy, recipe = tp.Downpour(steps=3), tp.Recipe(batch_size=8, learning_rate=0.05)
    pool = tp.SimulatedPool(machines, processes=1)
    run = training.begin(
        experiment,
        out=tmp_path / "run",
        strategy=strategy,
        recipe=recipe,
        pool=pool,
        pace=tp.Pace(grace=0.5),
        epochs=2,
        cache=cache,
        keep_journal=True,
    )
    result = training.carry_on(run, quiet=True)
    assert sum(entry.lost for entry in replayed(run, start, experiment).memory.ledger.values()) > 0
    again = replayed(run, start, experiment)
    assert np.concatenate([again.parameters, again.buffers]).tobytes() == result.parameters.tobytes()


def replayed(run: training.Run, start: dict[str, torch.Tensor], experiment: tp.Experiment) -> Coordinator:
    """The coordinator at the end of a run's journal."""
    experiment.model.load_state_dict(start)
    config = run.config
    plan = Plan.of({shard.id: shard.samples for shard in config.train.shards}, config.recipe, config.epochs)
    layout, vector, pace = layout_of(experiment.model), vector_of(experiment.model), tp.Pace(**config.pace)
    return replay(run.home, Coordinator(run.strategy, plan, layout, vector, seed=config.seed, pace=pace))
