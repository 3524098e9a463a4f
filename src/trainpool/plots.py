"""Plots that people read: test accuracy and loss of one or more runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainpool.record import Record

__all__ = ["COLOURS", "curves"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which people with any colour vision can tell apart."""


def curves(runs: Mapping[str, Sequence[Record]], path: Path, title: str = "") -> None:
    """Draw test accuracy (or loss, where targets are not labels) against seconds and against epochs, as a PNG."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    key = "test_accuracy" if all(r["test_accuracy"] is not None for run in runs.values() for r in run) else "test_loss"
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, unit, label in ((left, "seconds", "seconds of training"), (right, "epoch", "passes over the data")):
        for (name, records), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
            x = [r[unit] for r in records]  # type: ignore[literal-required]
            y = [100 * r[key] if key == "test_accuracy" else r[key] for r in records]  # type: ignore[literal-required]
            axes.plot(x, y, "o-", color=colour, markersize=3.5, linewidth=1.6, label=f"{name}: {y[-1]:.4g}")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if key == "test_accuracy":
        # The first points of a run are far below the rest, which is what people want to compare.
        values = sorted(100 * float(r["test_accuracy"] or 0) for run in runs.values() for r in run)
        left.set_ylim(bottom=max(0.0, values[len(values) // 4] - 10))
    left.set_ylabel("test accuracy (%)" if key == "test_accuracy" else "test loss")
    right.legend(loc="lower right" if key == "test_accuracy" else "upper right", frameon=False)
    if title:
        figure.suptitle(title)
    figure.savefig(path)
