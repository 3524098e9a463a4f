"""The golden vectors, which the browser's tests read as well: Python gives what they say."""

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from trainpool import program, rng, wire
from trainpool.errors import MessageError, ProgramError
from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.protocol import Evaluation
from trainpool.messages import Recipe, Report, Task

VECTORS = Path(__file__).parent.parent / "vectors"
KINDS: dict[str, type] = {"task": Task, "report": Report}
TASKS = sorted(path.name for path in (VECTORS / "tasks").iterdir())


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def script() -> ModuleType:
    """vectors/make.py."""
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_generators_numbers_are_those_on_disk() -> None:
    assert json.loads(json.dumps(script().numbers())) == read("rng.json")
    (seed, start, answer) = read("rng.json")["bits"][-1]
    assert [str(item) for item in rng.bits(rng.key(int(seed)), start, len(answer))] == answer


def test_learning_rates_are_those_on_disk() -> None:
    for recipe, steps in read("rates.json"):
        for progress, answer in steps:
            assert msgspec.convert(recipe, Recipe).rate(progress) == answer


@pytest.mark.parametrize("vector", read("messages.json"), ids=lambda vector: str(vector["name"]))
def test_a_message_is_read_or_refused(vector: dict[str, Any]) -> None:
    data, kind = base64.b64decode(vector["file"]), KINDS[vector["kind"]]
    if "refused" in vector:
        with pytest.raises(MessageError) as caught:
            wire.decode(data, kind)
        assert vector["refused"] in str(caught.value)
        return
    message, tensors = wire.decode(data, kind)
    assert json.loads(msgspec.json.encode(message)) == vector["message"]
    assert {name: (list(v.shape), [str(n) for n in v.ravel().tolist()]) for name, v in tensors.items()} == {
        name: (tensor["shape"], tensor["values"]) for name, tensor in vector["tensors"].items()
    }


@pytest.mark.parametrize("vector", read("programs.json"), ids=lambda vector: str(vector["name"]))
def test_a_program_is_loaded_or_refused(vector: dict[str, Any], tmp_path: Path) -> None:
    for name, data in vector["files"].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    if vector["refused"] is None:
        assert program.load(tmp_path).name == vector["id"]
        return
    with pytest.raises(ProgramError) as caught:
        program.load(tmp_path)
    assert vector["refused"] in str(caught.value)


def test_the_refused_programs_are_those_that_the_script_writes() -> None:
    assert [(v["name"], v["refused"]) for v in script().refused_programs()] == [
        (v["name"], v["refused"]) for v in read("programs.json")
    ]


def check(name: str, run: Any, evaluate: Any, bound: float) -> None:
    """A kernel's update and evaluation against those on disk, relative to their size."""
    folder = VECTORS / "tasks" / name
    task, carried = wire.read(folder / "task.safetensors", Task)
    _, shard = wire.read(folder / "shard.safetensors", Any)
    report, answer = wire.read(folder / "report.safetensors", Report)
    evaluation = msgspec.json.decode((folder / "evaluation.json").read_bytes(), type=Evaluation)
    out = np.zeros_like(carried["vector"])
    found = run(task, carried["vector"], carried.get("anchor"), shard, out)
    wanted = np.concatenate([answer["delta"], answer["buffers"]])
    split = answer["delta"].size
    for part in (slice(split), slice(split, None)):
        assert np.linalg.norm(out[part] - wanted[part]) <= bound * np.linalg.norm(wanted[part])
    assert (found.task, found.steps, found.samples) == (report.task, report.steps, report.samples)
    assert found.loss == pytest.approx(report.loss, rel=bound)
    measured = evaluate(carried["vector"], shard)
    assert measured.loss == pytest.approx(evaluation.loss, rel=bound)
    assert (measured.accuracy, measured.samples) == (evaluation.accuracy, evaluation.samples)


@pytest.mark.parametrize("name", TASKS)
def test_onnx_runtime_gives_the_update_on_disk(name: str) -> None:
    kernel = OnnxKernel(program.load(VECTORS / "tasks" / name / "program"))
    check(name, kernel.run, kernel.evaluate, 1e-4)


def test_pytorch_gives_the_updates_on_disk() -> None:
    cases = {case.name: case for case in script().cases()}
    assert sorted(cases) == TASKS
    for name, case in cases.items():
        kernel = case.kernel()
        check(name, kernel.run, kernel.evaluate, 1e-5)
