"""Does the simulator predict wall-clock time? The same runs on real processes of this machine and in virtual time.

Two pools: two equal workers, and three of which two share a processor core (Linux). The simulated machines are told one
measured number, the samples a second of a worker with a core of its own while every core is busy; those that share one
get half of it. Then each method runs both ways with the same seed, data and settings. A ratio of 1 means that the
simulation knew the time; above 1 reality took longer. Run it on a machine of two cores or more that does nothing else.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import trainpool as tp
from trainpool import training
from trainpool.data import default_cache
from trainpool.experiment import named_experiment
from trainpool.messages import Recipe
from trainpool.pools.local import Process
from trainpool.strategies import ParallelSGD

METHODS = {
    "diloco, 16 steps": tp.DiLoCo(steps=16, momentum=0.5, learning_rate=1.0),
    "parallel-sgd": "parallel-sgd",
    "downpour": "downpour",
    "fedbuff": "fedbuff",
}


class Pinned(tp.LocalPool):
    """Workers of one thread on given cores."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(len(places), threads=1)
        self.places = places

    def start(self, name: str, number: int) -> Process:
        process = super().start(name, number)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(process.child.pid, {cores[self.places[number % len(self.places)]]})
        return process


def run(strategy: object, pool: object, epochs: float, seed: int) -> tuple[float, float, int]:
    """Seconds on the pool's clock, test accuracy at the end, merged samples."""
    cache = default_cache()
    experiment = named_experiment("fashion-mnist", "cnn", cache=cache, seed=seed)
    with tempfile.TemporaryDirectory(prefix="trainpool-") as folder:
        made = training.begin(
            experiment,
            out=Path(folder) / "run",
            strategy=strategy,  # type: ignore[arg-type]
            recipe=Recipe(batch_size=32),
            pool=pool,  # type: ignore[arg-type]
            epochs=epochs,
            seed=seed,
            evaluate_every=epochs,
            cache=cache,
        )
        summary = training.carry_on(made, quiet=True).summary
    return summary["seconds"], summary["test_accuracy"] or 0.0, summary["samples"]


def main() -> None:
    """Measure, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    table = Table(
        "workers", "method", "real s", "simulated s", "real / simulated", "real accuracy", "simulated accuracy"
    )
    pools: dict[str, tuple[Sequence[int], Sequence[float]]] = {"2 equal": ((0, 1), (1.0, 1.0))}
    if hasattr(os, "sched_setaffinity"):
        pools["3, two on one core"] = ((0, 1, 1), (1.0, 0.5, 0.5))
    for name, (places, parts) in pools.items():
        for label, method in METHODS.items():
            real, simulated = [], []
            for seed in range(options.runs):
                # One long task each, no waiting for one another: what the processor does without a coordinator.
                seconds, _, samples = run(ParallelSGD(rounds=1), Pinned((0, 1)), options.epochs, seed)
                speed = samples / seconds / 2
                real.append(run(method, Pinned(places), options.epochs, seed))
                machines = tp.fleet(speeds=[speed * part for part in parts])
                simulated.append(run(method, tp.SimulatedPool(machines), options.epochs, seed))
            ratio = statistics.median(a[0] / b[0] for a, b in zip(real, simulated, strict=True))
            times = [f"{statistics.median(found[0] for found in side):.1f}" for side in (real, simulated)]
            accuracies = [f"{statistics.median(found[1] for found in side):.2%}" for side in (real, simulated)]
            row = (name, label, *times, f"{ratio:.2f}", *accuracies)
            table.add_row(*row)
            print(*row, sep="  ", flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
