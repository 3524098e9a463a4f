"""Whole runs with `kernel="onnx"`: workers without PyTorch, and the command line."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import trainpool as tp
from trainpool import program, training, wire
from trainpool.cli import app
from trainpool.data.shards import load as load_shard
from trainpool.errors import ConfigError
from trainpool.experiment import named_experiment
from trainpool.messages import Recipe


def test_a_run_follows_pytorchs(cache: Path, tmp_path: Path) -> None:
    results = {}
    for kernel in ("torch", "onnx"):
        experiment = named_experiment("digits", "cnn", cache=cache)
        results[kernel] = tp.train(
            # Tasks of as many steps whatever the machine's speed: momentum starts anew in each.
            experiment, strategy=tp.ParallelSGD(rounds=10), pool=tp.LocalPool(1, threads=1), epochs=5, cache=cache,
            out=tmp_path / kernel, kernel=kernel, quiet=True, recipe=Recipe(momentum=0.9, learning_rate=0.02),
        )  # fmt: skip
    ours, torchs = results["onnx"], results["torch"]
    assert ours.summary["test_accuracy"] == pytest.approx(torchs.summary["test_accuracy"], abs=0.005)
    assert torchs.summary["test_accuracy"] > 0.9
    distance = np.linalg.norm(ours.parameters - torchs.parameters) / np.linalg.norm(torchs.parameters)
    assert distance < 1e-3  # five passes multiply what rounding began
    assert program.load(tmp_path / "onnx" / "program").program.batch == 32


def test_a_worker_of_a_program_never_imports_pytorch(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    run = training.begin(
        experiment, out=tmp_path / "r", cache=cache, kernel="onnx", recipe=Recipe(batch_size=16), pool=tp.LocalPool(1)
    )
    shard = run.config.train.shards[0].id
    assert len(load_shard(cache / "shards", shard)["y"])
    code = f"""
import sys
sys.modules["torch"] = None  # importing it now fails
import tempfile, numpy as np
from pathlib import Path
from trainpool.worker import Worker, Setup, Run, Done
from trainpool.messages import Recipe, Task
from trainpool import program
folder = {str(tmp_path / "r" / "program")!r}
layout = program.load(Path(folder)).layout
setup = Setup(layout=layout, dtype="<f4", program=folder, shards={str(cache / "shards")!r},
              memory=str(Path(tempfile.mkdtemp()) / "slot"), threads=1, device="auto", number=0, polite=False,
              path=sys.path)
worker = Worker(setup)
task = Task(id=0, version=0, shard={shard!r}, recipe=Recipe(batch_size=16), seed=0, offset=0, steps=2, batch=16)
answer = worker.answer(Run(task))
assert isinstance(answer, Done), answer
held = set(name.split(".")[0] for name, module in sys.modules.items() if module)
assert held.isdisjoint(["torch", "onnx", "cloudpickle"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_a_run_goes_on_from_where_it_broke_off(
    experiment: tp.Experiment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"recipe": Recipe(batch_size=16), "cache": cache, "kernel": "onnx", "epochs": 2}
    options |= {"strategy": tp.ParallelSGD(rounds=5), "pool": tp.LocalPool(1, threads=1)}
    whole = tp.train(copy.deepcopy(experiment), quiet=True, **options)
    run = training.begin(experiment, out=tmp_path / "r", **options)
    written = wire.write

    def full(path: Path, data: bytes) -> None:
        if path.parent.name == "blobs" and int(path.stem) > 4:
            raise OSError(28, "No space left on device")
        written(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(wire, "write", full)
        with pytest.raises(tp.RunError, match="No space left"):
            training.carry_on(run, quiet=True)
    result = training.resume(run.home, quiet=True)
    assert result.summary["samples"] == whole.summary["samples"] == 800
    assert np.array_equal(result.parameters, whole.parameters)


def test_what_a_program_cannot_do_is_said_before_the_start(
    experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="recalibrate"):
        training.begin(experiment, out=tmp_path / "a", cache=cache, kernel="onnx", recalibrate=3)
    assert not (tmp_path / "a").exists()


def test_the_command_lowers_and_shows_what_it_made(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "program"
    arguments = ["lower", "--data", "digits", "--model", "logistic", "--out", str(out), "--cache", str(cache), "-q"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("operators", "nodes", "size", "PyTorch", "difference", "program.json", "evaluate.onnx"):
        assert word in result.output
    assert program.load(out).program.name == "logistic on digits"
    refused = CliRunner().invoke(app, [*arguments, "--recipe", "precision=bfloat16"])
    assert refused.exit_code == 2
    assert "float32" in refused.output


def test_an_unknown_kernel_is_named(tmp_path: Path) -> None:
    arguments = ["train", "--data", "digits", "--model", "logistic", "--kernel", "onx", "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "did you mean 'onnx'" in result.output
