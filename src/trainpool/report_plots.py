"""A comparison's plots, as SVG that takes its ink from the page around it, so that it reads in dark mode as well."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from trainpool.plots import COLOURS
from trainpool.results import REFERENCE, Results, Row
from trainpool.tables import Units, size
from trainpool.trial import Outcome, Timeline

__all__ = ["against_bytes", "against_time", "bars", "overview", "picture", "svg", "timelines"]

INK = "#010203"
"""Stands for the colour of the page's text: nobody else draws with it."""
WIDTH = 5.8
"""Inches: on a phone the text is then still large enough."""
KINDS = {
    "compute": ("computing", "#0072B2"),
    "download": ("receiving", "#56B4E9"),
    "upload": ("sending", "#009E73"),
    "waiting": ("waiting", "#E69F00"),
    "away": ("away", "#8c8c8c"),
}
"""What workers do, how it is called, and its colour."""
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "trainpool",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.2,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "grid.color": INK,
    "legend.frameon": False,
    "axes.facecolor": "none",
}


@contextmanager
def figure(height: float) -> Iterator[Figure]:
    """A figure in the report's style, `height` inches high."""
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made


def svg(made: Figure, name: str, alt: str) -> str:
    """A figure as an SVG element for a page; `name` keeps its ids apart from those of others."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # a page needs none
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor").replace("xlink:href", "href")
    label = alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r'<svg width="[^"]*" height="[^"]*"|<svg height="[^"]*"', "<svg", text, count=1).replace(
        "<svg", f'<svg role="img" aria-label="{label}"', 1
    )


def picture(made: Figure, path: Path) -> None:
    """A figure as a PNG file."""
    made.savefig(path, dpi=150, facecolor="white")


def look(labels: Sequence[str], label: str) -> dict[str, Any]:
    """A method's colour and line; the reference is drawn in the text's own colour."""
    if label == REFERENCE:
        return {"color": INK, "linestyle": "--"}
    number = [other for other in labels if other != REFERENCE].index(label)
    palette = COLOURS[:-1]
    return {"color": palette[number % len(palette)], "linestyle": ("-", "-.", ":")[number // len(palette) % 3]}


def band(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], label: str, **style: Any) -> None:
    """The median of several curves (x, y), with their range."""
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    # Between the latest start and the earliest end all curves are known.
    grid = grid[(grid >= max(x[0] for x, _ in curves)) & (grid <= min(x[-1] for x, _ in curves))]
    if grid.size == 0:
        return
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    axes.plot(grid, np.median(values, axis=0), label=label, linewidth=1.6, **style)
    axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.18, linewidth=0)


def accuracy_axes(axes: Axes, results: Results, curves: Sequence[Sequence[Outcome]]) -> None:
    """The vertical axis: accuracy in percent, with the target; the first steps from chance are cut off."""
    values = sorted(100 * (p.accuracy or 0.0) for group in curves for outcome in group for p in outcome.curve) or [0.0]
    top = max(values[-1], 100 * results.target)
    axes.set_ylim(max(0.0, min(values[len(values) // 4], 100 * results.target) - 8), min(100.0, top + 2))
    axes.axhline(100 * results.target, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylabel("test accuracy (%)")
    axes.grid()
    made = axes.get_figure()
    assert isinstance(made, Figure)
    if axes.get_legend_handles_labels()[0]:
        made.legend(loc="outside upper left", fontsize=8, ncols=3, handlelength=1.6, columnspacing=1.2)


def against_time(results: Results, taken: Mapping[str, Sequence[Outcome]]) -> Figure:
    """Accuracy against virtual time; `taken` has each method's outcomes with its best rate, one a seed."""
    units = Units.of(results)
    with figure(3.6) as made:
        axes = made.subplots()
        for label, group in taken.items():
            curves = [
                (
                    np.array([point.seconds for point in outcome.curve]) / units.seconds,
                    np.array([100 * (point.accuracy or 0.0) for point in outcome.curve]),
                )
                for outcome in group
                if outcome.curve
            ]
            if curves:
                name = "best machine alone" if label == REFERENCE else label
                band(axes, curves, name, **look(list(taken), label))
        axes.set_xlim(0, horizon(results) / units.seconds)
        axes.set_xlabel(f"virtual time ({units.name})")
        accuracy_axes(axes, results, list(taken.values()))
    return made


def horizon(results: Results) -> float:
    """Seconds that are worth showing: until all that ever get to the target are there."""
    times = [row.seconds.high or row.total_seconds.high or 0.0 for row in (results.reference, *results.rows)]
    return 1.08 * max(times) or 1.0


def against_bytes(results: Results, taken: Mapping[str, Sequence[Outcome]]) -> Figure:
    """Accuracy against the bytes that all workers together received and sent; the reference needs none."""
    with figure(3.6) as made:
        axes = made.subplots()
        groups = {label: group for label, group in taken.items() if label != REFERENCE}
        for label, group in groups.items():
            curves = [
                (
                    np.log10([max(point.bytes_down + point.bytes_up, 1) for point in outcome.curve]),
                    np.array([100 * (point.accuracy or 0.0) for point in outcome.curve]),
                )
                for outcome in group
                if outcome.curve
            ]
            if curves:
                band(axes, curves, label, **look(list(taken), label))
        axes.xaxis.set_major_formatter(lambda value, place: rounded(10**value))
        axes.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.5))
        axes.set_xlabel("bytes to and from all workers (logarithmic)")
        accuracy_axes(axes, results, list(groups.values()))
    return made


def rounded(count: float) -> str:
    """Bytes with two figures: a tick's label."""
    return size(float(f"{count:.2g}"))


def bars(results: Results, labels: Sequence[str]) -> Figure:
    """Time to the target with the range over seeds, the speed-up, and where the ideal would be."""
    rows = [*results.rows, results.reference]
    units = Units.of(results)
    with figure(0.9 + 0.34 * len(rows)) as made:
        axes = made.subplots()
        width = max(row.seconds.high or row.total_seconds.high or 0.0 for row in rows) / units.seconds or 1.0
        for place, row in enumerate(rows):
            bar(axes, place, row, units, width, look(labels, row.method)["color"])
        reference = results.reference.seconds.median
        if reference is not None:
            ideal = reference / results.capacity.ideal / units.seconds
            axes.axvline(ideal, color=INK, linewidth=1, linestyle="--")
            axes.annotate(
                f"ideal: {ideal:.3g} {units.name}",
                (ideal, 1),
                (4, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=8,
                va="top",
            )
        axes.set_yticks(range(len(rows)), [("best machine alone" if r.method == REFERENCE else r.method) for r in rows])
        axes.set_ylim(len(rows) - 0.4, -1.0)
        axes.set_xlim(0, 1.3 * width)
        axes.set_xlabel(f"virtual time to {100 * results.target:.6g} % ({units.name})")
        axes.tick_params(left=False)
    return made


def bar(axes: Axes, place: int, row: Row, units: Units, width: float, colour: str) -> None:
    """One method's bar."""
    low, middle, high = (
        None if value is None else value / units.seconds
        for value in (row.seconds.low, row.seconds.median, row.seconds.high)
    )
    if middle is None:
        axes.barh(place, width, color="none", edgecolor=colour, hatch="////", linewidth=0.8, height=0.62, alpha=0.5)
        axes.annotate(
            f"{row.reached} of {row.seeds} seeds" if row.reached else "never", (width * 1.02, place), va="center"
        )
        return
    axes.barh(place, middle, color=colour, height=0.62, alpha=0.85)
    end = width if high is None else high
    axes.plot([low or 0.0, end], [place, place], color=INK, linewidth=1.2)
    faster = "" if row.speedup.median is None or row.method == REFERENCE else f" · {row.speedup.median:.2f}×"
    axes.annotate(f"{middle:.3g} {units.name}{faster}", (end + 0.02 * width, place), va="center")


def timelines(lines: Mapping[str, Timeline], window: float | None = None) -> Figure:
    """What a few workers of each method did, one below the other; all over the same length of time, in seconds."""
    window = window or shared(list(lines.values()))
    heights = [len(line.names) for line in lines.values()]
    with figure(0.9 + 0.42 * len(lines) + 0.155 * sum(heights)) as made:
        grid = made.subplots(len(lines), 1, sharex=True, squeeze=False, height_ratios=heights)
        for axes, (label, line) in zip(grid[:, 0], lines.items(), strict=True):
            tracks(axes, line, window)
            axes.set_title(label, loc="left", fontsize=8.5, pad=3)
        grid[-1, 0].set_xlabel("virtual seconds")
        legend(made)
    return made


def overview(whole: Timeline, part: Timeline) -> Figure:
    """What workers did in a whole run, and for a few tasks of it."""
    count = len(whole.names)
    with figure(1.6 + 0.36 * count) as made:
        upper, lower = made.subplots(2, 1)
        for axes, line, window in ((upper, whole, whole.end - whole.start), (lower, part, shared([part]))):
            tracks(axes, line, window)
        upper.set_title("the whole run", loc="left", fontsize=8.5)
        lower.set_title(f"from {part.start:.4g} s on", loc="left", fontsize=8.5)
        lower.set_xlabel("virtual seconds")
        legend(made)
    return made


def legend(made: Figure) -> None:
    """The colours of what workers do, above a figure."""
    made.legend(
        handles=[Patch(color=colour, label=text) for text, colour in KINDS.values()],
        loc="outside upper left",
        ncols=len(KINDS),
        fontsize=8,
        handlelength=1.0,
        columnspacing=1.2,
    )


def shared(lines: Sequence[Timeline]) -> float:
    """Seconds to show: as far as all are known, and no more than a few of the longest tasks."""
    known = min((line.end - line.start for line in lines), default=0.0) or 1.0
    longest = [s.end - s.start for line in lines for part in line.spans for s in part if s.kind == "compute"]
    return min(known, 4 * max(longest, default=known))


def tracks(axes: Axes, line: Timeline, window: float) -> None:
    """The workers of one method: what is not something else is waiting."""
    for place, spans in enumerate(line.spans):
        axes.broken_barh([(0, window)], (place - 0.38, 0.76), color=KINDS["waiting"][1], linewidth=0)
        for kind, (_, colour) in KINDS.items():
            pieces = [
                (span.start - line.start, min(span.end - line.start, window) - (span.start - line.start))
                for span in spans
                if span.kind == kind and span.start - line.start < window
            ]
            if pieces:
                axes.broken_barh(pieces, (place - 0.38, 0.76), color=colour, linewidth=0)
    axes.set_yticks(range(len(line.names)), [f"{speed:,.0f}/s" for speed in line.speeds], fontsize=7)
    axes.set_xlim(0, window)
    axes.set_ylim(len(line.names) - 0.5, -0.5)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
