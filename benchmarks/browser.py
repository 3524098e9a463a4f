"""A training step in Chromium as ratios: against PyTorch on this machine, and against TensorFlow.js on the same page.

The network is `models.CNN` on 28x28 images, batch 32, plain SGD; everything has one thread. PyTorch is measured before
and after the browser. Needs Node.js and Chromium (or its path in CHROMIUM).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import trainpool as tp
from trainpool import models, wire
from trainpool.kernels.torch import vector_of
from trainpool.lowering import lower
from trainpool.messages import Recipe, Task

HERE = Path(__file__).parent / "browser"
BATCH = 32
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytorch(x: np.ndarray, y: np.ndarray, steps: int) -> list[float]:
    """Milliseconds of each step after the first ones, written by hand."""
    model, images, labels = models.CNN((1, 28, 28), 10), torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    times = []
    for step in range(steps + 5):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
        begin = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(images[rows].float() / 255), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(1000 * (time.perf_counter() - begin))
    return times[5:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, for a first look")
    quick = parser.parse_args().quick
    npm, node = shutil.which("npm"), shutil.which("node")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if npm is None or node is None or chromium is None:
        sys.exit("this benchmark needs Node.js, npm and Chromium (or its path in CHROMIUM)")
    for folder in (HERE.parent.parent / "web", HERE):
        if not (folder / "node_modules").exists():
            subprocess.run([npm, "ci"], cwd=folder, check=True, stdout=sys.stderr)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (512, 1, 28, 28), dtype=np.uint8)
    y = generator.integers(0, 10, 512)
    steps = 20 if quick else 60
    recipe = Recipe(learning_rate=0.01, batch_size=BATCH)
    experiment = tp.Experiment(models.CNN((1, 28, 28), 10), (x, y), (x, y), name="cnn")
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        lower(experiment, recipe).save(data)
        task = Task(id=0, version=0, shard="", recipe=recipe, seed=1, offset=0, steps=steps + 5, batch=BATCH)
        (data / "task.safetensors").write_bytes(wire.encode(task, {"vector": vector_of(experiment.model)}))
        (data / "shard.safetensors").write_bytes(wire.encode({}, {"x": x, "y": y}))
        native = pytorch(x, y, steps)
        environment = {**os.environ, "CHROMIUM": chromium, "BENCHMARK_DATA": str(data), "BENCHMARK_OUT": str(out)}
        command = [node, "run.mjs", "1" if quick else "2", "1" if quick else "3"]
        printed = subprocess.run(
            command, cwd=HERE, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        native += pytorch(x, y, steps)
    times = {"PyTorch": native, **json.loads(printed)}
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name}: {middle[name]:.1f} ms a step (median of {len(values)}; fastest {min(values):.1f})")
    ours = middle["trainpool"]
    print(f"speed of PyTorch's, one thread each: {middle['PyTorch'] / ours:.2f} (aim 0.5, at least 0.35)")
    print(f"speed of TensorFlow.js' cpu backend: {middle['tensorflow'] / ours:.0f} times (at least 40)")


if __name__ == "__main__":
    main()
