"""Runs a program's tasks with ONNX Runtime: no PyTorch, no code of the author's.

The parameters live in two flat vectors. A step reads one and writes the other, so nothing is copied between steps; the
session and its bindings serve every task.
"""

import base64
import ctypes
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from trainpool import rng
from trainpool.errors import ProgramError
from trainpool.kernels.protocol import Arrays, Calibration, Evaluation, KernelError
from trainpool.messages import Report, ShardId, Task
from trainpool.program import Array, Loaded
from trainpool.program import load as load_program
from trainpool.vector import Vector

__all__ = ["OnnxKernel", "load"]

DISABLED = ["NchwcTransformer", "TransposeOptimizer"]
"""The first is made for constant weights: here it would only reorder activations before and after each pooling. The
second makes one slow transposition of several fast ones."""

PROBE = base64.b64decode(
    "CAk6aAopCgF4EgF5IgxSZW9yZGVySW5wdXQ6E2NvbS5taWNyb3NvZnQubmNod2MSAWdaGwoBeBIWChQIARIQCgIIAQoCCBAKAggBCgIIAmIbCgF5"
    "EhYKFAgBEhAKAggBCgIIEAoCCAEKAggCQgQKABAUQhcKE2NvbS5taWNyb3NvZnQubmNod2MQAQ=="
)
"""An ONNX file: y = ReorderInput(x), of 16 channels and two pixels."""

Value = Any
"""An `onnxruntime.OrtValue`."""


class OnnxKernel:
    """Runs tasks of one program on the processor, or on a CUDA device."""

    def __init__(self, loaded: Loaded, device: str = "cpu", threads: int = 1, *, plain: bool = False) -> None:
        """Make the sessions. `device` is `cpu`, `cuda` or `cuda:1`; `plain` leaves the blocked memory order alone.

        Raises:
            ProgramError: the program does not run here.
        """
        self.program, self.layout = loaded.program, loaded.layout
        self.kind, _, number = device.partition(":")
        self.number = int(number or 0)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.kind == "cuda":
            # By itself it rounds to TF32's 10 bits: after 20 steps an update is tens of percent off a processor's.
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": self.number, "use_tf32": "0"}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3

        def session(data: bytes) -> Any:
            return onnxruntime.InferenceSession(data, options, providers=providers, disabled_optimizers=DISABLED)

        try:
            self.test = session(loaded.evaluate)
            if self.kind == "cuda" and "CUDAExecutionProvider" not in self.test.get_providers():
                self.kind, self.number = "cpu", 0  # ONNX Runtime went there by itself, as where CUDA's files lack
            blocked = None if plain or self.kind != "cpu" else loaded.blocked.get(block())
            self.train = session(loaded.train) if blocked is None else either(session, blocked, loaded.train)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise ProgramError(f"ONNX Runtime cannot load the program: {first_line(error)}") from error
        self.proximal = any(node.name == "rho" for node in self.train.get_inputs())
        self.values: dict[str, Value] = {}
        self.memory: dict[str, np.ndarray[Any, Any]] = {}
        self.flats = [np.zeros(self.layout.size, np.float32) for _ in range(2)]
        self.states = [self.empty(self.program.state) for _ in range(2)]
        self.anchor = np.zeros(self.layout.trainable, np.float32)
        self.make_inputs()
        self.bindings = [self.training_binding(side) for side in range(2)]
        self.evaluation = self.evaluation_binding()

    def empty(self, arrays: tuple[Array, ...]) -> dict[str, np.ndarray[Any, Any]]:
        """Zeros for named arrays."""
        return {array.name: np.zeros(array.shape, np.float32) for array in arrays}

    def make_inputs(self) -> None:
        """The arrays that each step is given, in memory that stays."""
        program = self.program
        for prefix, batch in (("", program.batch), ("test.", program.evaluation_batch)):
            for name, sample in (("x", program.x), ("y", program.y)):
                self.memory[prefix + name] = np.zeros((batch, *sample.shape), sample.dtype)
        self.memory["mask"] = np.zeros(program.evaluation_batch, np.float32)
        self.memory |= {name: np.zeros((), np.float32) for name in ("rate", "rho", "step")}
        self.memory |= self.empty(program.noise)
        for name, array in self.memory.items():
            self.values[name] = self.value(array)
        self.sides: list[dict[str, Value]] = []
        for flat, state in zip(self.flats, self.states, strict=True):
            side = {}
            views = self.layout.views(flat)
            for spec in self.layout.tensors:
                side[("p." if spec.role == "parameter" else "b.") + spec.name] = self.value(views[spec.name])
            side |= {f"s.{name}": self.value(array) for name, array in state.items()}
            self.sides.append(side)
        for spec in self.layout.tensors:
            if spec.role == "parameter":
                part = self.anchor[spec.offset : spec.offset + spec.size].reshape(spec.shape)
                self.memory[f"a.{spec.name}"] = part
                self.values[f"a.{spec.name}"] = self.value(part)
        self.loss = np.zeros((), np.float32)
        self.correct = np.zeros((), np.float32)
        self.outputs = {"loss": self.value(self.loss), "correct": self.value(self.correct)}

    def value(self, array: np.ndarray[Any, Any]) -> Value:
        """ONNX Runtime's view of an array: on the processor it is the same memory."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.kind, self.number)

    def training_binding(self, side: int) -> Any:
        """Which memory a step reads and writes that starts from one side."""
        binding = self.train.io_binding()
        wanted = {node.name for node in self.train.get_inputs()}
        for name, value in {**self.values, **self.sides[side]}.items():
            if name in wanted:
                binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("loss", self.outputs["loss"])
        for name, value in self.sides[1 - side].items():
            binding.bind_ortvalue_output(f"new.{name}", value)
        return binding

    def evaluation_binding(self) -> Any:
        """Which memory an evaluation reads and writes."""
        binding = self.test.io_binding()
        given = {"x": self.values["test.x"], "y": self.values["test.y"], "mask": self.values["mask"], **self.sides[0]}
        for node in self.test.get_inputs():
            binding.bind_ortvalue_input(node.name, given[node.name])
        for name, value in self.outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def give(self, name: str, array: Any) -> None:
        """Set an input."""
        self.memory[name][...] = array
        if self.kind != "cpu":
            self.values[name].update_inplace(self.memory[name])

    def put(self, side: int) -> None:
        """Bring a side's vector and state to the device, where that is not the processor."""
        if self.kind == "cpu":
            return
        views = self.layout.views(self.flats[side])
        for name, value in self.sides[side].items():
            array = self.states[side][name[2:]] if name.startswith("s.") else views[name[2:]]
            value.update_inplace(np.ascontiguousarray(array))

    def fetch(self, side: int) -> Vector:
        """A side's vector."""
        if self.kind != "cpu":
            views = self.layout.views(self.flats[side])
            for name, value in self.sides[side].items():
                if not name.startswith("s."):
                    views[name[2:]][...] = value.numpy()
        return self.flats[side]

    def result(self, name: str) -> float:
        """An output that is one number."""
        return float(self.outputs[name].numpy())

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        """Train; see `Kernel.run`."""
        try:
            self.program.fits(task)
        except ProgramError as error:
            raise KernelError(str(error)) from error
        x, y = self.samples(shard)
        recipe, trainable = task.recipe, self.layout.trainable
        self.flats[0][:] = vector
        for array in self.states[0].values():
            array[...] = 0
        self.put(0)
        if task.rho and not self.proximal:
            raise KernelError("the task has a proximal term, but the program was lowered without one")
        self.anchor[:] = vector[:trainable] if anchor is None else anchor
        for spec in self.layout.tensors:
            if spec.role == "parameter" and self.kind != "cpu":
                self.give(f"a.{spec.name}", self.memory[f"a.{spec.name}"])
        self.give("rho", task.rho)
        begin, total = time.perf_counter(), 0.0
        for step, rows in enumerate(rng.batches(task.seed, len(y), task.offset, task.steps, task.batch)):
            self.give("x", x[rows])
            self.give("y", y[rows])
            self.give("rate", recipe.rate(task.progress + step * task.pace))
            self.give("step", step + 1)
            for number, noise in enumerate(self.program.noise):
                array = self.memory[noise.name]
                drawn = rng.noise(task.seed, number, task.offset + step * task.batch, array.size)
                self.give(noise.name, drawn.reshape(array.shape))
            self.train.run_with_iobinding(self.bindings[step % 2])
            loss = self.result("loss")
            if step == 0 and not np.isfinite(loss):
                raise KernelError(f"the loss is {loss} at the first step: check the data and lower the learning rate")
            total += loss
        mean = total / task.steps
        seconds = time.perf_counter() - begin
        if not np.isfinite(mean):
            raise KernelError(
                f"the loss became {mean} within {task.steps} steps: lower the learning rate or set clip_norm"
            )
        end = self.fetch(task.steps % 2)
        np.subtract(vector[:trainable], end[:trainable], out=out[:trainable])
        out[trainable:] = end[trainable:]
        return Report(task=task.id, steps=task.steps, samples=task.steps * task.batch, loss=mean, seconds=seconds)

    def evaluate(self, vector: Vector, data: Arrays) -> Evaluation:
        """Measure; see `Kernel.evaluate`."""
        self.flats[0][:] = vector
        self.put(0)
        x, y = self.samples(data)
        loss, correct, batch = 0.0, 0.0, self.program.evaluation_batch
        for start in range(0, len(y), batch):
            rows = np.arange(start, start + batch)
            self.give("mask", (rows < len(y)).astype(np.float32))
            rows %= len(y)  # what fills the last batch is any sample: the mask takes it out
            self.give("test.x", x[rows])
            self.give("test.y", y[rows])
            self.test.run_with_iobinding(self.evaluation)
            loss += self.result("loss")
            correct += self.result("correct")
        return Evaluation(loss / len(y), correct / len(y) if self.program.correct else None, len(y))

    def recalibrate(self, vector: Vector, shards: Callable[[ShardId], Arrays], calibration: Calibration) -> Vector:
        """Not possible: a program has no such graph. See `Kernel.recalibrate`.

        Raises:
            KernelError: always.
        """
        raise KernelError("a program cannot measure BatchNorm's statistics anew: use GroupNorm, or the PyTorch kernel")

    def samples(self, shard: Arrays) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """A shard's arrays, if they are of the program's kind.

        Raises:
            KernelError: they are not.
        """
        for name, sample in (("x", self.program.x), ("y", self.program.y)):
            array = shard[name]
            if (array.dtype.name, array.shape[1:]) != (sample.dtype, tuple(sample.shape)):
                raise KernelError(
                    f"the program takes {name} of type {sample.dtype} and shape {tuple(sample.shape)}, but the shard "
                    f"has {array.dtype.name} and {array.shape[1:]}"
                )
        return shard["x"], shard["y"]


@functools.cache
def block() -> int:
    """Channels in a block of ONNX Runtime's memory order on this processor: 8 or 16; 1 where it has none.

    ONNX Runtime does not tell; it is seen from where the second of two pixels goes.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    pixels = np.arange(32, dtype=np.float32).reshape(1, 16, 1, 2)
    try:
        session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
        ordered = np.asarray(session.run(None, {"x": pixels})[0])
    except Exception:  # ONNX Runtime's exceptions share no base of their own
        return 1
    return int(np.flatnonzero(ordered == 1)[0])


def either(session: Callable[[bytes], Any], blocked: bytes, plain: bytes) -> Any:
    """The blocked form's session; the plain one's where this ONNX Runtime does not know the blocked operators so."""
    try:
        return session(blocked)
    except Exception:  # ONNX Runtime's exceptions share no base of their own
        return session(plain)


def first_line(error: BaseException) -> str:
    """An exception's first words."""
    return " ".join(str(error).split())[:300]


def gpus() -> int:
    """How many CUDA devices the driver shows this process; ONNX Runtime itself does not tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def load(folder: Path, device: str, number: int, threads: int) -> tuple[OnnxKernel, str]:
    """The kernel of a program's folder, and the name of its device.

    `device` `auto` is the GPU that falls to worker `number` where ONNX Runtime has CUDA, or the CPU.

    Raises:
        ProgramError: the folder holds no program that runs here.
    """
    count = gpus() if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else 0
    if device == "auto":
        device = f"cuda:{number % count}" if count else "cpu"
    elif device != "cpu" and not count:
        raise ProgramError(f"no device {device!r}: that takes a GPU with CUDA, and onnxruntime-gpu")
    kernel = OnnxKernel(load_program(folder), device, threads)
    return kernel, device if kernel.kind == "cuda" else "cpu"
