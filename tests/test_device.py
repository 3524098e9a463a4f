"""What runs on a GPU, as far as a machine without one shows: no kernel takes the processor's memory for a device's."""

import ctypes
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import trainpool as tp
from trainpool.errors import ProgramError
from trainpool.kernels import onnx as onnx_kernel
from trainpool.kernels import torch as torch_kernel
from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.lowering import lower
from trainpool.messages import Recipe, Task

generator = np.random.default_rng(0)
SHARD = {"x": generator.integers(0, 256, (48, 1, 8, 8), dtype=np.uint8), "y": generator.integers(0, 10, 48)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 10)
    )


def task(recipe: Recipe, steps: int = 5) -> Task:
    return Task(
        id=0, version=0, shard="s", recipe=recipe, seed=1, offset=0, steps=steps, batch=16, anchored=True, rho=0.1
    )  # fmt: skip


def test_pytorchs_kernel_gives_the_same_bits_on_a_device_with_its_own_memory() -> None:
    program = Path(__file__).with_name("far.py")
    found = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == {"sgd": 0.0, "adamw": 0.0, "mixed": "aten.add.Tensor got tensors of two devices"}


def test_a_program_gives_the_same_bits_on_a_device_with_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(batch_size=16, momentum=0.9)
    experiment = tp.Experiment(network(), (SHARD["x"], SHARD["y"]))
    loaded = lower(experiment, recipe).loaded
    made = onnxruntime.OrtValue.ortvalue_from_numpy

    def separate(array: np.ndarray, kind: str, number: int) -> Any:
        assert (kind, number) == ("cuda", 1)
        return made(array.copy())

    found = {}
    for device in ("cpu", "cuda:1"):
        if device != "cpu":
            monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(separate))
            monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: ["CUDAExecutionProvider"])
        with nullcontext() if device == "cpu" else pytest.warns(UserWarning, match="CUDAExecutionProvider"):
            kernel = OnnxKernel(loaded, device)
        vector = vector_of(network())
        anchor, out = vector[: kernel.layout.trainable] + np.float32(0.01), np.empty_like(vector)
        for steps in (5, 4):  # which end on either side of the two that steps go between
            report = kernel.run(task(recipe, steps), vector, anchor, SHARD, out)
            found[device, steps] = (out.tobytes(), report.loss, kernel.evaluate(vector, SHARD))
    for steps in (5, 4):
        assert found["cpu", steps] == found["cuda:1", steps]


def test_where_cuda_does_not_load_a_program_runs_on_the_processor() -> None:
    loaded = lower(tp.Experiment(network(), (SHARD["x"], SHARD["y"])), Recipe(batch_size=16)).loaded
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        kernel = OnnxKernel(loaded, "cuda:1")
    assert (kernel.kind, kernel.number) == ("cpu", 0)
    vector = vector_of(network())
    assert kernel.run(task(Recipe(batch_size=16), 2), vector, None, SHARD, np.empty_like(vector)).steps == 2


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_gpu_gives_the_processors_update_tolerance_1e_4(kind: str) -> None:
    available = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if not (available if kind == "onnx" else torch.cuda.is_available()):
        pytest.skip("CUDA_VISIBLE_DEVICES names no GPU: none is compared with the processor")
    recipe, found = Recipe(batch_size=16, momentum=0.9), {}
    loaded = lower(tp.Experiment(network(), (SHARD["x"], SHARD["y"])), recipe).loaded if kind == "onnx" else None
    for device in ("cpu", "cuda"):
        kernel = (
            OnnxKernel(loaded, device) if loaded else TorchKernel(network(), nn.functional.cross_entropy, None, device)
        )
        vector = vector_of(network())
        out = np.empty_like(vector)
        kernel.run(task(recipe), vector, None, SHARD, out)
        found[device] = out
    assert np.linalg.norm(found["cuda"] - found["cpu"]) < 1e-4 * np.linalg.norm(found["cpu"])


def test_a_gpu_is_told_to_keep_all_bits_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = lower(tp.Experiment(network(), (SHARD["x"], SHARD["y"])), Recipe(batch_size=16)).loaded
    opened, asked = onnxruntime.InferenceSession, []

    def open_(data: bytes, options: Any, *, providers: list[Any], **more: Any) -> Any:
        asked.append(providers)
        return opened(data, options, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_)
    OnnxKernel(loaded, "cuda:1")
    assert asked[-1] == [("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"}), "CPUExecutionProvider"]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(nn.Module, "to", lambda self, *_: self)
    TorchKernel(network(), nn.functional.cross_entropy, None, "cuda:1")
    assert not torch.backends.cudnn.allow_tf32


def test_bfloat16_computes_in_less_and_keeps_float32_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = []
    for precision in ("float32", "bfloat16"):
        if precision == "bfloat16":
            monkeypatch.setattr(TorchKernel, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
        kernel, vector = TorchKernel(network(), nn.functional.cross_entropy), vector_of(network())
        out = np.empty_like(vector)
        kernel.run(task(Recipe(batch_size=16, precision=precision)), vector, vector, SHARD, out)  # type: ignore[arg-type]
        assert {p.dtype for p in kernel.parameters} == {torch.float32}
        updates.append(out[: kernel.layout.trainable])
    distance = np.linalg.norm(updates[1] - updates[0]) / np.linalg.norm(updates[0])
    assert 1e-4 < distance < 0.1


@pytest.mark.parametrize(("number", "device"), [(0, "cuda:0"), (3, "cuda:1")])
def test_each_worker_takes_the_gpu_of_its_number(
    number: int, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "program.pkl").write_bytes(cloudpickle.dumps((network(), nn.functional.cross_entropy, None, None)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch_kernel, "TorchKernel", lambda *arguments, **_: arguments[3])
    threads = torch.get_num_threads()
    assert torch_kernel.load(tmp_path / "program.pkl", "auto", number, threads) == (device, device)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnx_kernel, "gpus", lambda: 2)
    monkeypatch.setattr(onnx_kernel, "load_program", lambda folder: folder)
    monkeypatch.setattr(onnx_kernel, "OnnxKernel", lambda _, device, threads: SimpleNamespace(kind=device[:4]))
    assert onnx_kernel.load(tmp_path, "auto", number, 1)[1] == device
    monkeypatch.setattr(onnx_kernel, "gpus", lambda: 0)
    assert onnx_kernel.load(tmp_path, "auto", number, 1)[1] == "cpu"
    with pytest.raises(ProgramError, match="no device 'cuda:1': that takes a GPU with CUDA, and onnxruntime-gpu"):
        onnx_kernel.load(tmp_path, "cuda:1", number, 1)


@pytest.mark.parametrize(("code", "expected"), [(0, 3), (100, 0)])
def test_the_driver_tells_how_many_gpus_there_are(code: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(reference: Any) -> int:
        reference._obj.value = 3
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: code, cuDeviceGetCount=count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert onnx_kernel.gpus() == expected
