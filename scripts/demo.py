"""Train Fashion-MNIST with each method, one after the other, then compare them in a table and a plot."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import trainpool as tp
from trainpool.data import default_cache, named
from trainpool.display import duration
from trainpool.experiment import named_experiment
from trainpool.plots import curves

METHODS = ("serial", "auto", "parallel-sgd", "admm", "downpour")
PACKAGE = "dataset-fashion-mnist"


def fetch(cache: Path) -> None:
    """Make sure of the data: cached, Debian's package, a download; install the package where that is possible."""
    try:
        named("fashion-mnist", cache)
    except tp.DataError:
        command = ["apt-get", "install", "--yes", PACKAGE]
        if not shutil.which("apt-get"):
            raise
        if os.geteuid() != 0:
            command = ["sudo", "--non-interactive", *command]
        print(f"The download failed; installing Debian's package {PACKAGE} instead.", file=sys.stderr)
        subprocess.run([*command[:-3], "update"], check=False, capture_output=True)
        if subprocess.run(command, check=False, capture_output=True).returncode:
            raise


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=3, help="passes over the data (default 3)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes (default one a core, at least 2)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"default {' '.join(METHODS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default runs/demo, replaced)")
    options = parser.parse_args()
    cache = default_cache()
    fetch(cache)
    shutil.rmtree(options.out, ignore_errors=True)
    workers = max(2, options.workers or tp.LocalPool().workers)
    table = Table(title=f"Fashion-MNIST, cnn, {options.epochs:g} passes over 60,000 images")
    for column in ("method", "workers", "test accuracy", "time", "samples/s", "updates", "mean staleness"):
        table.add_column(column, justify="left" if column == "method" else "right")
    runs = {}
    for name in options.methods:
        count = 1 if name == "serial" else workers
        result = tp.train(
            named_experiment("fashion-mnist", "cnn", cache=cache),
            strategy=name,
            pool=tp.LocalPool(count, threads=1),
            epochs=options.epochs,
            out=options.out / name,
        )
        runs[name] = result.history
        s = result.summary
        numbers = (f"{s['test_accuracy']:.2%}", duration(s["seconds"]), f"{s['samples_per_second']:,.0f}")
        table.add_row(name, str(count), *numbers, f"{s['updates']:,}", f"{s['staleness']:g}")
    plot = options.out / "demo.png"
    curves(runs, plot, f"Fashion-MNIST, cnn, {workers} workers (serial: 1)")
    Console(width=100).print(table)
    print(f"The plot is {plot}; each run's files are beside it.")


if __name__ == "__main__":
    try:
        main()
    except tp.TrainpoolError as error:
        sys.exit(f"trainpool: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
