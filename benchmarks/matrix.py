"""The comparisons of docs/benchmarks.md: run what is missing, print all as Markdown. Hours on two cores.

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
OTHERS = "admm,local-sgd,fedprox,fedopt,fedasync,delayed-nesterov,staleness-aware,dc-asgd,ringmaster,easgd"
SIXTEEN = "--workers 16 --spread 8 --epochs 0.7"
CHURN = "--churn 0.2 --session 10"  # runs last some seconds: of stays of a minute most who leave would not come back
LONG = "--epochs 2.5 --evaluate-every 0.1"
RESNET = (
    "--model resnet20 --workers 16 --spread 8 --epochs 1 --recipe clip_norm=1 --batch-size 8 "
    "--evaluate-every 0.05 --target 0.83"
)
CASES = {
    "16-spread8": f"--strategies {THREE},fedbuff,fedavg {SIXTEEN} {COMMON}",
    "16-spread8-others": f"--strategies {OTHERS} {SIXTEEN} --rate 0.1 {COMMON}",
    "16-spread8-churn": f"--strategies {THREE} {SIXTEEN} {CHURN} --rate 0.1 {COMMON}",
    "16-spread1-churn": f"--strategies {THREE} {SIXTEEN} --spread 1 {CHURN} --rate 0.1 {COMMON}",
    "4-spread8": f"--strategies {THREE} {SIXTEEN} --workers 4 --rate 0.1 {COMMON}",
    "16-spread1": f"--strategies {THREE} {SIXTEEN} --spread 1 --rate 0.1 {COMMON}",
    "16-spread8-skew5": f"--strategies {THREE} {SIXTEEN} --skew 5 --rate 0.1 {COMMON}",
    "16-spread8-skew5-others": f"--strategies admm,fedprox {SIXTEEN} --skew 5 --rate 0.1 {COMMON}",
    "16-spread8-skew0.5": f"--strategies {THREE} {SIXTEEN} --skew 0.5 --rate 0.1 {COMMON}",
    "16-spread8-skew0.5-others": f"--strategies admm,fedprox {SIXTEEN} --skew 0.5 --rate 0.1 {COMMON}",
    "16-spread8-lines": f"--strategies {THREE} {SIXTEEN} --speed 100 --bandwidth 20:100 --latency 0.05 --epochs 2 "
    f"--rate 0.1 {COMMON}",
    "4-spread1": f"--strategies {THREE} {SIXTEEN} --workers 4 --spread 1 --rate 0.1 {COMMON}",
    "64-spread8": f"--strategies {THREE} --workers 64 --spread 8 --rate 0.1 {COMMON} {LONG}",
    "64-spread1": f"--strategies {THREE} --workers 64 --spread 1 --rate 0.1 {COMMON} {LONG}",
    "64-spread8-churn": f"--strategies {THREE} --workers 64 --spread 8 {CHURN} --rate 0.1 {COMMON} {LONG}",
    "resnet20": f"--strategies auto,downpour {RESNET} --rates 0.1,0.2,0.4",
    "resnet20-others": f"--strategies parallel-sgd {RESNET} --rates 0.1,0.2,0.4",
    "resnet20-churn": f"--strategies auto {RESNET} {CHURN} --rate 0.4",
    "resnet20-skew5": f"--strategies auto {RESNET} --skew 5 --rate 0.4",
    "resnet20-4": f"--strategies auto {RESNET} --workers 4 --rate 0.4",
    "resnet20-spread1": f"--strategies auto {RESNET} --spread 1 --rate 0.4",
    "resnet20-64": f"--strategies auto {RESNET} --workers 64 --epochs 2 --evaluate-every 0.1 --rate 0.4",
}
TITLES = {
    "16-spread8": "Sixteen unequal machines",
    "16-spread8-others": "Sixteen unequal machines: the other methods",
    "16-spread8-churn": "Sixteen unequal machines, a fifth away at any time",
    "16-spread1-churn": "Sixteen equal machines, a fifth away at any time",
    "4-spread8": "Four unequal machines",
    "16-spread1": "Sixteen equal machines",
    "16-spread8-skew5": "Sixteen unequal machines, non-iid shards",
    "16-spread8-skew5-others": "Sixteen unequal machines, non-iid shards: ADMM and FedProx",
    "16-spread8-skew0.5": "Sixteen unequal machines, shards of one or two classes",
    "16-spread8-skew0.5-others": "Sixteen unequal machines, shards of one or two classes: ADMM and FedProx",
    "16-spread8-lines": "Sixteen unequal machines on home lines",
    "4-spread1": "Four equal machines",
    "64-spread8": "Sixty-four unequal machines",
    "64-spread1": "Sixty-four equal machines",
    "64-spread8-churn": "Sixty-four unequal machines, a fifth away at any time",
    "resnet20": "ResNet-20 on sixteen unequal machines",
    "resnet20-others": "ResNet-20 on sixteen unequal machines: Parallel SGD",
    "resnet20-churn": "ResNet-20 on sixteen unequal machines, a fifth away at any time",
    "resnet20-skew5": "ResNet-20 on sixteen unequal machines, non-iid shards",
    "resnet20-4": "ResNet-20 on four unequal machines",
    "resnet20-spread1": "ResNet-20 on sixteen equal machines",
    "resnet20-64": "ResNet-20 on sixty-four unequal machines",
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


def read(folder: Path) -> Results:
    """The numbers of a finished comparison."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_bytes())
    return msgspec.convert(found["results"], Results)


def lines(cells: list[list[str]]) -> list[str]:
    """A table's rows; the first one is its head."""
    return ["| " + " | ".join(line) + " |" for line in (cells[0], ["---"] * len(cells[0]), *cells[1:])]


def glance(folders: dict[str, Path]) -> str:
    """The finished comparisons with `auto`, a line each: `auto`, and the best of the other methods."""
    wanted = ("time to target", "speed-up", "of ideal", "accuracy")
    cells = [["comparison", *(f"auto: {title}" for title in wanted), "best other method", "serial: time to target"]]
    for name, folder in folders.items():
        results = read(folder)
        units, rows = Units.of(results), {row.method: row for row in results.rows}
        if "auto" not in rows:
            continue
        shown = {column.title: column.cell for column in COLUMNS}
        rest = "–"
        for other in [row for row in results.rows if row.method != "auto"][:1]:
            reached = shown["speed-up"](other, results, units) if other.reached else "never"
            rest = f"{other.method}: {reached}, {shown['accuracy'](other, results, units)}"
        auto = [shown[title](rows["auto"], results, units) for title in wanted]
        cells.append([TITLES[name], *auto, rest, shown["time to target"](results.reference, results, units)])
    return "\n".join(lines(cells))


def markdown(folder: Path) -> str:
    """A finished comparison as a table, with its headline and its notes."""
    results = read(folder)
    units = Units.of(results)
    columns: list[Column] = [column for column in COLUMNS if column.title in SHOWN]
    cells = [[column.title for column in columns]]
    cells += [[column.cell(row, results, units) for column in columns] for row in (*results.rows, results.reference)]
    remarks = [*notes(results), f"Ideal: {results.capacity.ideal:.3g} times the fastest machine."]
    return "\n".join([headline(results), "", *lines(cells), "", " ".join(remarks)])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--list", action="store_true", help="print the commands alone")
    parser.add_argument("--print", action="store_true", help="print what is finished alone")
    options = parser.parse_args()
    names = options.only or CASES
    if options.list:
        print(*(shlex.join(command(name)) for name in names), sep="\n")
        return
    for name in () if options.print else names:
        run = [sys.executable, "-m", "trainpool.cli", *command(name)[1:], "--out", str(options.out / name)]
        subprocess.run(run, check=True, stdout=sys.stderr)
    finished = {name: options.out / name for name in names if (options.out / name / "results.json").exists()}
    if finished:
        print(glance(finished))
    for name, folder in finished.items():
        print(f"\n## {TITLES[name]}\n\n    {shlex.join(command(name))}\n\n{markdown(folder)}")


if __name__ == "__main__":
    main()
