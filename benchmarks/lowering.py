"""A lowered program on ONNX Runtime against PyTorch, one thread each, in turn; `--quick` for less.

1. Milliseconds a training step, batch 32: the package's CNN on 28x28 and ResNet-20 on 32x32. Against PyTorch as
   everybody writes it (eager, its own memory order), and against this package's kernel, which chooses the memory order.
   Each side in a process of its own, both kernels' as the local pool starts its workers; the ratio is the median of
   the turns'.
2. Seconds to lower ResNet-20.
3. Megabytes that a worker installs: `pip install` of this package without extras, all files of it and what it needs.

`--profile resnet20` prints instead which operators take the time of a step. `--run` trains the CNN on Fashion-MNIST
with both kernels, one pass (`--run 3` for three), and prints how far apart their accuracies are.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime
import torch
from speed import by_hand

import trainpool as tp
from trainpool import models, program
from trainpool.data.cache import default_cache
from trainpool.experiment import Normalize, named_experiment
from trainpool.kernels.onnx import OnnxKernel
from trainpool.kernels.protocol import Kernel
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.messages import Recipe, Task
from trainpool.pools.local import KEEP_MEMORY

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, str], int]] = {
    "cnn": ("cnn", (1, 28, 28), {}, 60),
    "resnet20": ("resnet20", (3, 32, 32), {}, 12),
    "resnet20, BatchNorm": ("resnet20", (3, 32, 32), {"norm": "batch"}, 12),
}


def experiment_of(case: str) -> tp.Experiment:
    """Random bytes in the form of the images: speed does not depend on what they show."""
    name, shape, options, _ = CASES[case]
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (640, *shape), dtype=np.uint8)
    normalize = Normalize((0.286,) * shape[0], (0.353,) * shape[0])
    model = models.build(name, shape, 10, **options)
    return tp.Experiment(model, (x, generator.integers(0, 10, 640)), preprocess=normalize, name=case)


def measure(side: str, case: str, folder: Path) -> float:
    """Milliseconds a step, in this process; the second of two tasks, the first warms up."""
    experiment, steps = experiment_of(case), CASES[case][3]
    if side == "hand":
        torch.set_num_threads(1)
        x, y = (torch.from_numpy(part) for part in experiment.train)
        x = experiment.preprocess(x)  # type: ignore[misc]
        rates = [by_hand(experiment.model, x, y, Recipe(), n) for n in (4, min(steps, len(y) // 32))]
        return 32e3 / rates[-1]
    kernel: Kernel
    if side in ("onnx", "plain"):
        kernel = OnnxKernel(program.load(folder), plain=side == "plain")
    else:
        torch.set_num_threads(1)
        kernel = TorchKernel(experiment.model, experiment.loss_function(), experiment.preprocess)
    vector = vector_of(experiment.model)
    out, (x, y) = np.empty_like(vector), experiment.train
    seconds = 0.0
    for n in (4, steps):
        task = Task(id=0, version=0, shard="s", recipe=Recipe(), seed=1, offset=0, steps=n, batch=32, progress=0.5)
        seconds = kernel.run(task, vector, None, {"x": x, "y": y}, out).seconds / n
    return seconds * 1e3


def profile(case: str, folder: Path) -> Counter[str]:
    """Microseconds that each operator took, in all steps."""
    ordinary = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        made = ordinary()
        made.enable_profiling, made.profile_file_prefix = True, str(folder / "profile")
        return made

    experiment, steps = experiment_of(case), CASES[case][3]
    with mock.patch.object(onnxruntime, "SessionOptions", options):
        kernel = OnnxKernel(program.load(tp.lower(experiment, Recipe(), proximal=False).save(folder / "program")))
    vector, (x, y) = vector_of(experiment.model), experiment.train
    task = Task(id=0, version=0, shard="s", recipe=Recipe(), seed=1, offset=0, steps=steps, batch=32)
    kernel.run(task, vector, None, {"x": x, "y": y}, np.empty_like(vector))
    kernel.test.end_profiling()
    found: Counter[str] = Counter()
    for event in json.loads(Path(kernel.train.end_profiling()).read_bytes()):
        if event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"]] += event["dur"]
    return found


def run(epochs: float) -> None:
    """The same training with both kernels: Parallel SGD in rounds, two workers, tasks whose length no clock decides."""
    found = {}
    for kernel in ("torch", "onnx"):
        result = tp.train(
            named_experiment("fashion-mnist", "cnn", cache=default_cache()), strategy=tp.ParallelSGD(rounds=20),
            pool=tp.LocalPool(2, threads=1), epochs=epochs, kernel=kernel, quiet=True, recipe=Recipe(momentum=0.9),
        )  # fmt: skip
        found[kernel] = float(result.summary["test_accuracy"])
        print(f"{kernel}: {found[kernel]:.2%} of the test images right, {result.summary['seconds']:.0f} s", flush=True)
    apart = abs(found["onnx"] - found["torch"]) * 100
    print(f"{apart:.2f} points apart (aim: at most 0.5)")


def installed() -> float:
    """Megabytes of a fresh installation without extras; pip's own files, which were there before, do not count."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "environment"
        venv.create(place, with_pip=True)
        python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
        before = weight(place)
        command = [str(python), "-m", "pip", "install", "--quiet", str(Path(__file__).parent.parent)]
        subprocess.run(command, check=True, capture_output=True)
        return weight(place) - before


def weight(folder: Path) -> float:
    """Megabytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Lower, then measure in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "CASE", "FOLDER"), help="for this script's own use")
    parser.add_argument("--profile", choices=CASES, help="where a step's time goes")
    parser.add_argument("--run", nargs="?", type=float, const=1.0, metavar="EPOCHS", help="train with both kernels")
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    if options.profile:
        with tempfile.TemporaryDirectory() as folder:
            found = profile(options.profile, Path(folder))
        for name, time_taken in found.most_common(15):
            print(f"{time_taken / found.total():6.1%}  {name}")
        return
    if options.measure:
        print(json.dumps(measure(options.measure[0], options.measure[1], Path(options.measure[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            begin = time.perf_counter()
            lowered = tp.lower(experiment_of(case), Recipe(), proximal=False)
            seconds = time.perf_counter() - begin
            place = lowered.save(Path(folder) / str(number))
            times: dict[str, list[float]] = {"hand": [], "torch": [], "onnx": [], "plain": []}
            for _ in range(3 if options.quick else 9):
                for side, found in times.items():
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if side == "hand" else KEEP_MEMORY)
                    command = [sys.executable, __file__, "--measure", side, case, str(place)]
                    output = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
                    found.append(json.loads(output))
            hand, kernel = (
                statistics.median(a / b for a, b in zip(times[side], times["onnx"], strict=True))
                for side in ("hand", "torch")
            )
            each = [f"{statistics.median(found):.1f}" for found in times.values()]
            print(
                f"{case}: {hand:.2f} times PyTorch by hand (aim 1.0), {kernel:.2f} times this package's PyTorch "
                f"kernel; {each[2]} ms a step against {each[0]} and {each[1]}, {each[3]} without blocks; "
                f"lowered in {seconds:.1f} s (aim 20), {lowered.nodes:,} operators",
                flush=True,
            )
    print(f"a worker without PyTorch: {installed():.0f} MB installed (aim 180)")


if __name__ == "__main__":
    main()
