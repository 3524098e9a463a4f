"""The comparisons of docs/benchmarks.md: run what is missing, print each as Markdown. Hours on two cores.

Every comparison is one `trainpool compare` command and a folder below `--out`; a finished training is kept, so an
interrupted matrix goes on where it was. `--only NAME` runs one, `--list` prints the commands, `--print` runs nothing.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from trainpool.results import Results
from trainpool.tables import COLUMNS, Column, Units, headline, notes

COMMON = "--batch-size 8 --evaluate-every 0.05 --target 0.88"
THREE = "auto,parallel-sgd,downpour"
LONG = "--epochs 2.5 --evaluate-every 0.1"
CASES = {
    "16-spread8": f"--strategies {THREE},fedbuff,fedavg --workers 16 --spread 8 --epochs 0.7 {COMMON}",
    "16-spread8-churn": f"--strategies {THREE} --workers 16 --spread 8 --churn 0.2 --epochs 0.7 --rate 0.1 {COMMON}",
    "4-spread8": f"--strategies {THREE} --workers 4 --spread 8 --epochs 0.7 --rate 0.1 {COMMON}",
    "16-spread1": f"--strategies {THREE} --workers 16 --spread 1 --epochs 0.7 --rate 0.1 {COMMON}",
    "16-spread8-skew": f"--strategies {THREE} --workers 16 --spread 8 --skew 5 --epochs 0.7 --rate 0.1 {COMMON}",
    "16-spread8-skewed": f"--strategies {THREE} --workers 16 --spread 8 --skew 0.5 --epochs 0.7 --rate 0.1 {COMMON}",
    "16-spread8-lines": f"--strategies {THREE} --workers 16 --spread 8 --speed 100 --bandwidth 20:100 --latency 0.05 "
    f"--epochs 2 --rate 0.1 {COMMON}",
    "4-spread1": f"--strategies {THREE} --workers 4 --spread 1 --epochs 0.7 --rate 0.1 {COMMON}",
    "64-spread8": f"--strategies {THREE} --workers 64 --spread 8 --rate 0.1 {COMMON} {LONG}",
    "64-spread1": f"--strategies {THREE} --workers 64 --spread 1 --rate 0.1 {COMMON} {LONG}",
    "64-spread8-churn": f"--strategies {THREE} --workers 64 --spread 8 --churn 0.2 --rate 0.1 {COMMON} {LONG}",
    "resnet20": f"--strategies {THREE} --model resnet20 --workers 16 --spread 8 --epochs 0.5 --rate 0.1 --batch-size 8 "
    "--evaluate-every 0.05 --target 0.84",
}
SHOWN = (
    "method",
    "rate",
    "time to target",
    "speed-up",
    "of ideal",
    "accuracy",
    "computing",
    "wasted",
    "staleness",
    "to workers",
)


def command(name: str) -> list[str]:
    """What a person types for a case."""
    words: dict[str, list[str]] = {}
    for word in shlex.split(CASES[name]):
        if word.startswith("--"):
            words[word] = current = []
        else:
            current.append(word)  # the last of two equal options counts
    return ["trainpool", "compare", *(part for key, values in words.items() for part in (key, *values))]


def markdown(folder: Path) -> str:
    """A finished comparison as a table, with its headline and its notes."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_bytes())
    results = msgspec.convert(found["results"], Results)
    units = Units.of(results)
    columns: list[Column] = [column for column in COLUMNS if column.title in SHOWN]
    cells = [[column.title for column in columns], ["---"] * len(columns)]
    cells += [[column.cell(row, results, units) for column in columns] for row in (*results.rows, results.reference)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    remarks = [*notes(results), f"Ideal: {results.capacity.ideal:.3g} times the fastest machine."]
    return "\n".join([headline(results), "", *lines, "", " ".join(remarks)])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--list", action="store_true", help="print the commands alone")
    parser.add_argument("--print", action="store_true", help="print what is finished alone")
    options = parser.parse_args()
    for name in options.only or CASES:
        folder = options.out / name
        words = command(name)
        if options.list:
            print(shlex.join(words))
            continue
        if not options.print:
            run = [sys.executable, "-m", "trainpool.cli", *words[1:], "--out", str(folder)]
            subprocess.run(run, check=True, stdout=sys.stderr)
        if (folder / "results.json").exists():
            print(f"### {name}\n\n    {shlex.join(words)}\n\n{markdown(folder)}\n", flush=True)


if __name__ == "__main__":
    main()
