"""Speed, as ratios: both sides of each are measured in this run. Medians; `--quick` for a first look.

1. One worker's kernel against a hand-written PyTorch loop: same network, batch, threads, data on the same device. The
   loop runs as everybody runs it, the kernel as the local pool starts it: with its settings of glibc's allocator.
2. A whole run with one worker against that loop; with two workers of one thread against one, beside the limit of the
   hardware: two kernels that know nothing of each other against one; the coordinator's share of the processor.
3. Merging an update into 25 million parameters, per strategy, against `numpy.copyto` on the same arrays, both as
   bytes a second, counting the bytes that the rule must touch.
4. Start-up: `import trainpool` and `trainpool --help`.
5. Events a second of a simulation without training, on one core, and its memory with 100,000 machines.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import trainpool as tp
from trainpool import models, strategies, training
from trainpool.experiment import Normalize
from trainpool.kernels.torch import TorchKernel, vector_of
from trainpool.messages import Recipe, Task, Update
from trainpool.pools.fleet import fleet
from trainpool.pools.local import KEEP_MEMORY, cores
from trainpool.pools.timing import timing
from trainpool.strategies import Plan

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

ROWS: list[tuple[str, str, str, str]] = []


def row(what: str, value: str, aim: str, detail: str = "") -> None:
    """One line of the final table."""
    ROWS.append((what, value, aim, detail))
    print(f"{what}: {value} (aim {aim}) {detail}", flush=True)


def images(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Random bytes in the form of Fashion-MNIST: speed does not depend on what they show."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (samples, 1, 28, 28), dtype=np.uint8)
    return x, generator.integers(0, 10, samples)


def by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor, recipe: Recipe, steps: int) -> float:
    """The loop that everybody writes: samples a second."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=recipe.momentum)
    loss_function = nn.CrossEntropyLoss()
    order = torch.randperm(len(y), device=x.device)
    begin = time.perf_counter()
    for step in range(steps):
        rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = loss_function(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return steps * recipe.batch_size / (time.perf_counter() - begin)


CASES: dict[str, tuple[str, tuple[int, ...], str, Recipe, int]] = {
    "cnn": ("cnn", (1, 28, 28), "cpu", Recipe(), 150),
    "resnet20": ("resnet20", (3, 32, 32), "cpu", Recipe(momentum=0.9), 40),
    "cnn, cuda": ("cnn", (1, 28, 28), "cuda", Recipe(), 1000),
    "resnet20, cuda": ("resnet20", (3, 32, 32), "cuda", Recipe(momentum=0.9, batch_size=128), 300),
    "resnet20, cuda, bfloat16": (
        "resnet20",
        (3, 32, 32),
        "cuda",
        Recipe(momentum=0.9, batch_size=128, precision="bfloat16"),
        300,
    ),
}


def measure(side: str, case: str) -> float:
    """Samples a second of one side of a case, in this process; the second of two goes, the first warms up."""
    name, shape, device, recipe, steps = CASES[case]
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    samples = steps * recipe.batch_size
    bytes_, labels = generator.integers(0, 256, (samples, *shape), dtype=np.uint8), generator.integers(0, 10, samples)
    normalize = Normalize((0.286,) * shape[0], (0.353,) * shape[0])
    model = models.build(name, shape, 10)
    if side == "hand":
        x, y = normalize(torch.from_numpy(bytes_)).to(device), torch.from_numpy(labels).to(device)
        model = model.to(device)
        return [by_hand(model, x, y, recipe, n) for n in (10, steps)][-1]
    kernel = TorchKernel(model, nn.functional.cross_entropy, normalize, device)
    vector = vector_of(models.build(name, shape, 10))
    out, rate = np.empty_like(vector), 0.0
    for n in (10, steps):
        task = Task(
            id=0, version=0, shard="s", recipe=recipe, seed=1, offset=0, steps=n, batch=recipe.batch_size, progress=0.5
        )
        begin = time.perf_counter()
        kernel.run(task, vector, None, {"x": bytes_, "y": labels}, out)
        rate = n * recipe.batch_size / (time.perf_counter() - begin)
    return rate


def start_kernel(case: str) -> subprocess.Popen[str]:
    """Measure our kernel in a process of its own, as the local pool starts its workers."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | KEEP_MEMORY
    command = [sys.executable, __file__, "--measure", "ours", case]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)


def side_by_side(case: str) -> float:
    """Samples a second of two kernels at once against one: what perfect coordination could reach on this machine."""
    rates = []
    for kernels in (1, 2):
        processes = [start_kernel(case) for _ in range(kernels)]
        rates.append(sum(float(process.communicate()[0]) for process in processes))
    return rates[1] / rates[0]


def measured(side: str, case: str) -> float:
    """Samples a second of one side of a case, in a fresh interpreter; our kernel's as the local pool starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | (KEEP_MEMORY if side == "ours" else {})
    command = [sys.executable, __file__, "--measure", side, case]
    return float(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


def kernel_against_hand(case: str, runs: int) -> None:
    """Point 1."""
    rates: dict[str, list[float]] = {"hand": [], "ours": []}
    for _ in range(runs):
        for side, found in rates.items():
            found.append(measured(side, case))
    ratio = statistics.median(b / a for a, b in zip(rates["hand"], rates["ours"], strict=True))
    hand, ours = (statistics.median(side) for side in rates.values())
    recipe = CASES[case][3]
    detail = f"{ours:,.0f} samples/s against {hand:,.0f}; {recipe.precision}, batch {recipe.batch_size}"
    row(f"worker's kernel / PyTorch by hand: {case}", f"{ratio:.2f}", ">= 1.0", detail)


def whole_runs(runs: int, samples: int, folder: Path) -> None:
    """Point 2: a run's rate with one and two workers, and what the coordinator's process costs meanwhile."""
    ratios, shares, rates, limits, alone = [], [], [], [], []
    for number in range(runs):
        rate, share = {}, 0.0
        for workers in (1, 2):
            experiment = tp.Experiment(models.build("cnn", (1, 28, 28), 10), images(samples))
            pool = tp.LocalPool(workers, threads=1)
            out = folder / f"{number}-{workers}"
            run = training.begin(
                experiment, out=out, strategy="parallel-sgd", pool=pool, epochs=3, cache=folder / "cache"
            )
            before = time.process_time()
            summary = training.carry_on(run, quiet=True).summary
            share = (time.process_time() - before) / summary["seconds"] / workers
            rate[workers] = summary["samples_per_second"]
        limits.append(side_by_side("cnn"))
        alone.append(rate[1] / measured("hand", "cnn"))
        ratios.append(rate[2] / rate[1])
        rates.append(rate[2])
        shares.append(share)
    row(
        "a whole run with one worker / PyTorch by hand: cnn",
        f"{statistics.median(alone):.2f}",
        ">= 1.0",
        "no evaluation",
    )
    detail = f"{statistics.median(rates):,.0f} samples/s"
    row("two workers of one thread / one", f"{statistics.median(ratios):.2f}", ">= 1.9", detail)
    row("two kernels without a coordinator / one", f"{statistics.median(limits):.2f}", "-", "the hardware's limit")
    row("coordinator's processor time / workers'", f"{statistics.median(shares):.2%}", "< 3 %", "journal included")


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """The median time of some calls."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# Bytes a parameter that a rule must touch for one update, float32, amortised over a round of two shards.
TOUCHED = {
    "serial": (12, "Δ; w twice"),
    "downpour": (20, "Δ; w and G twice"),
    "parallel-sgd": (12 + (4 + 8 + 4) // 2, "Δ, the sum twice; half of: the sum twice, w twice"),
    "diloco": (12 + (8 + 8 + 8) // 2, "Δ, the sum twice; half of: the sum, the momentum and w twice"),
    "admm": (12 + (2 * (8 + 4) + 8) // 2, "Δ, z, x; half of: both u twice, both x, z twice"),
}


def merging(runs: int, size: int) -> None:
    """Point 3."""
    generator = np.random.default_rng(0)
    delta = generator.standard_normal(size, dtype=np.float32)
    target = np.zeros_like(delta)
    bandwidth = 2 * delta.nbytes / median_seconds(lambda: np.copyto(target, delta), 4 * runs)
    shards = {"0" * 63 + str(i): 1000 for i in range(2)}
    plan = Plan.of(shards, Recipe(batch_size=1, schedule="constant"), 10)
    for name in strategies.discover():
        if name not in TOUCHED:
            continue
        strategy = strategies.build(name, {"warm_start": 0.0} if name == "downpour" else {})
        state = strategy.init(target, plan)
        update = Update(delta, 1, 1, 0.0, 0, 0, 0.1)
        times = []
        for number in range(2 * runs + 2):
            shard = list(shards)[number % 2]
            begin = time.perf_counter()
            state = strategy.merge(state, shard, update)
            times.append(time.perf_counter() - begin)
        # A round's second update completes it: the mean of the two is one update's cost.
        seconds = statistics.median((a + b) / 2 for a, b in zip(times[2::2], times[3::2], strict=True))
        touched, what = TOUCHED[name]
        share = touched * size / seconds / bandwidth
        row(
            f"merge, {size / 1e6:.0f} M parameters: {name}", f"{share:.2f}", ">= 0.5", f"{seconds * 1e3:.0f} ms; {what}"
        )
    row("numpy.copyto, the yardstick", f"{bandwidth / 1e9:.1f} GB/s", "-", "read and write")


def start_up(runs: int) -> None:
    """Point 4, each in a fresh interpreter, the interpreter's own start included."""
    for arguments, aim in ((["-c", "import trainpool"], "< 0.3 s"), (["-m", "trainpool.cli", "--help"], "< 0.5 s")):
        command = [sys.executable, *arguments]
        seconds = median_seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True), runs)
        row(" ".join(["python", *arguments]), f"{seconds:.2f} s", aim)


def peak() -> float:
    """The most memory that this process had, in GB; `ru_maxrss` would also count what its parent had at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9 if resource else float("nan")  # macOS: bytes


def simulate(machines: int) -> tuple[float, float]:
    """Events a second of a run on so many unequal machines that come and go, and the process's memory in GB."""
    strategy, rate = strategies.Downpour(steps=5, warm_start=0.0), 0.0
    for some, steps in ((100, 100), (machines, max(5, 100_000 // machines))):  # the first one warms up
        result = timing(strategy, fleet(some, spread=8, churn=0.1), steps=steps)
        rate = result.events / result.real
    return rate, peak()


def simulation(runs: int) -> None:
    """Point 5, each in a fresh interpreter."""
    for machines in (64, 1000, 100_000):
        found = []
        for _ in range(runs if machines < 10_000 else 1):
            command = [sys.executable, __file__, "--machines", str(machines)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        rate, memory = (statistics.median(column) for column in zip(*found, strict=True))
        extremes = f"{min(found)[0]:,.0f} to {max(found)[0]:,.0f}"
        detail = f"{extremes}; {memory:.2f} GB, aim below 2 GB"
        row(f"events a second, {machines:,} machines", f"{rate:,.0f}", ">= 100,000", detail)


def main() -> None:
    """Measure, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--only", choices=("kernel", "runs", "merge", "start", "simulation"), help="one point alone")
    parser.add_argument(
        "--measure", nargs=2, metavar=("SIDE", "CASE"), help="one measurement, for this script's own use"
    )
    parser.add_argument("--machines", type=int, help="one simulation, for this script's own use")
    options = parser.parse_args()
    if options.machines:
        print(json.dumps(simulate(options.machines)))
        return
    if options.measure:
        print(measure(*options.measure))
        return
    runs = 3 if options.quick else 7
    print(f"{cores()} cores, PyTorch {torch.__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}")
    if options.only in (None, "kernel"):
        for case, (_, _, device, _, _) in CASES.items():
            if device == "cpu" or torch.cuda.is_available():
                kernel_against_hand(case, runs)
    if options.only in (None, "runs"):
        with tempfile.TemporaryDirectory() as folder:
            whole_runs(3 if options.quick else 5, 20_000 if options.quick else 60_000, Path(folder))
    if options.only in (None, "merge"):
        merging(5 if options.quick else 9, 25_000_000)
    if options.only in (None, "start"):
        start_up(5 if options.quick else 11)
    if options.only in (None, "simulation"):
        simulation(3 if options.quick else 5)
    table = Table(title="trainpool's speed")
    for column in ("what", "measured", "aim", "detail"):
        table.add_column(column)
    for entry in ROWS:
        table.add_row(*entry)
    Console(width=max(120, int(os.environ.get("COLUMNS", "150")))).print(table)


if __name__ == "__main__":
    main()
