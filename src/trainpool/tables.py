"""Results in words: the table's columns with their definitions, and a sentence that a person can repeat."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from trainpool.results import REFERENCE, Results, Row, Spread

__all__ = ["COLUMNS", "Column", "Units", "bandwidth", "headline", "measured", "notes", "passes", "percent", "size"]

EVEN = 1.05
"""How much larger one method's budget may be than another's before the table says so."""
COARSE = 0.3
"""The part of a time that may pass between two evaluations before the table says what helps."""


def percent(value: float | None, digits: int = 1) -> str:
    """A part of the whole as `88.3 %`; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def size(count: float | None) -> str:
    """Bytes as `12.3 MB`; a dash where there are none to tell."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def passes(epochs: float) -> str:
    """A budget, in passes over the data, for a person."""
    return "1 pass" if epochs == 1 else f"{epochs:g} passes"


def plain(value: float) -> str:
    """A number with three figures, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ranged(spread: Spread, show: Callable[[float], str], unit: str = "", absent: str = "never") -> str:
    """A median with its range, as `41.2 s (39.0–44.5)`; the range is left out where it says nothing."""
    if spread.median is None:
        return absent
    low, high = (absent if value is None else show(value) for value in (spread.low, spread.high))
    middle = show(spread.median)
    return f"{middle}{unit}" if low == middle == high else f"{middle}{unit} ({low}–{high})"


@dataclass(frozen=True)
class Units:
    """The unit of time of a whole table: numbers in one column should be comparable at a glance."""

    seconds: float
    name: str

    @classmethod
    def of(cls, results: Results) -> "Units":
        """The unit that suits the longest run."""
        times = [row.total_seconds.high or row.seconds.high or 0.0 for row in (results.reference, *results.rows)]
        longest = max(times)
        return cls(1.0, "s") if longest < 1000 else cls(60.0, "min") if longest < 60_000 else cls(3600.0, "h")

    def time(self, seconds: float | None) -> str:
        """Seconds in this unit, as `41.2`."""
        return "never" if seconds is None else plain(seconds / self.seconds)

    def spread(self, spread: Spread) -> str:
        """A time over seeds."""
        return ranged(spread, self.time, f" {self.name}")


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    title: str
    meaning: str
    cell: Callable[[Row, Results, Units], str]
    brief: bool = True
    """Whether it is shown on a terminal, where room is short."""


def name(row: Row, results: Results, units: Units) -> str:
    """The method; the reference says what it is."""
    return f"{row.method} (best machine alone)" if row.method == REFERENCE else row.method


def time_cell(row: Row, results: Results, units: Units) -> str:
    """Time to the target, and how many seeds reached it where not all did."""
    if row.reached in (0, row.seeds):
        return units.spread(row.seconds)
    seeds, low = f"{row.reached} of {row.seeds} seeds", units.time(row.seconds.low)
    if row.seconds.median is None:
        return f"never ({low} {units.name} in {seeds})"
    return f"{units.time(row.seconds.median)} {units.name} ({low}–never, {seeds})"


def speedup_cell(row: Row, results: Results, units: Units) -> str:
    """The speed-up; of a seed that never reached the target it is 0, of one that the reference never did endless."""
    if row.speedup.median is None:
        return "–"
    spread = msgspec.structs.replace(row.speedup, low=row.speedup.low or 0.0)
    return ranged(spread, lambda value: f"{value:.2f}", "×", "∞")


def traffic(row: Row, target: Spread, budget: Spread) -> str:
    """Bytes until the target, and in all; the reference needs none."""
    return "none" if row.method == REFERENCE else f"{size(target.median)} (of {size(budget.median)})"


def rate_cell(row: Row, results: Results, units: Units) -> str:
    """The learning rate."""
    return f"{row.rate:g}"


COLUMNS = (
    Column("method", "The strategy, with the settings that differ from its defaults.", name),
    Column("rate", "The peak learning rate: the best of the grid for this method, or the only one.", rate_cell),
    Column(
        "time to target",
        "Virtual seconds until the first evaluation at or above the target: the median over seeds, in brackets the "
        "lowest and the highest. A seed that never got there within the budget counts as longer than any other.",
        time_cell,
    ),
    Column(
        "speed-up",
        "The reference's time to the target divided by this method's, seed by seed: the median, in brackets the "
        "lowest and the highest. The reference is plain SGD on the fastest machine alone, which pays for no transfer "
        "and is never away.",
        speedup_cell,
    ),
    Column(
        "of ideal",
        "The speed-up divided by the ideal one: the throughput of all machines together, always there, over that of "
        "the fastest.",
        lambda row, results, units: "–" if row.method == REFERENCE else percent(row.share, 0),
    ),
    Column(
        "accuracy",
        "On the test data at the end of the budget.",
        lambda row, results, units: ranged(row.accuracy, lambda value: f"{100 * value:.2f}", " %", "failed"),
    ),
    Column(
        "computing",
        "The part of the time that machines were there in which they computed; the rest they waited or transferred.",
        lambda row, results, units: percent(row.utilisation.median, 0),
    ),
    Column(
        "wasted",
        "The part of the computed samples that no model learned from: lost, too late, too stale, cut off, or under "
        "way at the end.",
        lambda row, results, units: percent(row.waste.median, 1),
    ),
    Column(
        "staleness",
        "How many versions the model had moved on when an update arrived: the mean over updates.",
        lambda row, results, units: plain(row.staleness.median or 0.0),
    ),
    Column(
        "updates",
        "Merged in the whole budget.",
        lambda row, results, units: plain(row.updates.median or 0.0),
        brief=False,
    ),
    Column(
        "to workers",
        "Bytes of models sent to the workers until the target was reached, of those in the whole budget.",
        lambda row, results, units: traffic(row, row.target_down, row.bytes_down),
    ),
    Column(
        "back",
        "Bytes of models that arrived from the workers until the target was reached, of those in the whole budget.",
        lambda row, results, units: traffic(row, row.target_up, row.bytes_up),
    ),
    Column(
        "whole budget",
        "Virtual time for the whole budget of samples.",
        lambda row, results, units: units.spread(row.total_seconds),
        brief=False,
    ),
)


def measured(accuracy: float | None, loss: float | None) -> dict[str, str]:
    """What a run came to on the test data: the accuracy, or the loss where there are no classes to be right about."""
    if accuracy is None and loss is not None:
        return {"test loss": f"{loss:.4g}"}
    return {"test accuracy": "not measured" if accuracy is None else percent(accuracy, 2)}


def headline(results: Results) -> str:
    """The answer in two or three sentences."""
    units, target, serial = Units.of(results), f"{100 * results.target:.6g} %", results.reference
    best = results.rows[0]
    if best.seconds.median is None:
        most = max(results.rows, key=lambda row: row.accuracy.median or 0.0)
        end = f"no method reached {target} in most seeds within {passes(results.epochs)} over the data"
        came = f"; {most.method} came closest, with {percent(most.accuracy.median)}" if most.accuracy.median else ""
        alone = "did not either" if serial.seconds.median is None else f"did, in {units.spread(serial.seconds)}"
        return f"{end[0].upper()}{end[1:]}{came}. The best single machine {alone}."
    time = f"{units.time(best.seconds.median)} {units.name}"
    if best.speedup.median is None or best.share is None or serial.seconds.median is None:
        alone = f"only did in {serial.reached} of {serial.seeds} seeds" if serial.reached else "never did"
        text = f"{best.method} reached {target} in {time}; the best single machine {alone} within the budget."
    elif best.speedup.median > 1:
        text = (
            f"{best.method} reached {target} in {time}, {best.speedup.median:.1f} times sooner than the best single "
            f"machine; that is {percent(best.share, 0)} of what the machines' throughput allows."
        )
    else:
        alone = f"{units.time(serial.seconds.median)} {units.name}"
        text = (
            f"No method was sooner than the best single machine, which reached {target} in {alone}; "
            f"the nearest was {best.method}, in {time}."
        )
    down, up = size(best.target_down.median), size(best.target_up.median)
    text += f" Until then {best.method} sent {down} to the workers and {up} back."
    near = [row.method for row in results.rows[1:] if overlap(best.seconds, row.seconds)]
    if overlap(best.seconds, serial.seconds):
        near.append("the best single machine" if near else "The best single machine")
    if near:
        text += f" {' and '.join(near)} may be as fast: the ranges over seeds overlap."
    if best.reached < best.seeds:
        text += f" Only {best.reached} of {best.seeds} seeds reached it."
    return text


def notes(results: Results) -> list[str]:
    """What to know about the numbers: seeds, tuning, coarse timing, failures; a sentence each."""
    units, rows = Units.of(results), (*results.rows, results.reference)
    seeds, tried = results.reference.seeds, [[f"{point.rate:g}" for point in row.grid] for row in rows]
    rates = [rate for rate in tried[-1] if all(rate in each for each in tried)]
    found = [f"Medians over {seeds} seeds, with the range." if seeds > 1 else "There is one seed: no range is known."]
    if len(rates) > 1:
        found.append(f"Each method's learning rate was chosen from {', '.join(rates)}, on the first seed.")
        more = [
            f"{', '.join(rate for rate in each if rate not in rates)} ({row.method})"
            for row, each in zip(rows, tried, strict=True)
            if len(each) > len(rates)
        ]
        if more:
            found.append(f"Where the best was the lowest or the highest, more were tried: {', '.join(more)}.")
        if edge := [f"{row.method} ({row.rate:g})" for row in rows if row.edge]:
            found.append(f"At the edge of the grid all the same, so a better rate may lie beyond: {', '.join(edge)}.")
    else:
        found.append(f"The learning rate is {rates[0]} for all: it was not tuned.")
    known = [(row, row.gap.median, row.seconds.median) for row in rows if row.gap.median is not None]
    if known:
        gaps = ", ".join(f"{row.method} {units.time(gap)} {units.name}" for row, gap, _ in known)
        found.append(f"Times are known to the time between evaluations: {gaps}.")
        if any(gap is not None and seconds and gap > COARSE * seconds for _, gap, seconds in known):
            found.append("A smaller --evaluate-every makes it shorter.")
    whole = results.reference.samples
    ratios = [(row.method, row.samples / whole) for row in rows if row.samples and whole]
    if uneven := [f"{method} {ratio:.3g} times" for method, ratio in ratios if not 1 / EVEN <= ratio <= EVEN]:
        found.append(
            f"Budgets differ, since each shard takes whole batches, one at least: {', '.join(uneven)} the reference's "
            "samples. A smaller --batch-size makes them more equal."
        )
    found += [f"{row.method} took {row.reason}." for row in rows if row.reason]
    found += [f"{row.method}: {reason}." for row in rows for reason in sorted(set(row.failures))]
    return found


def overlap(first: Spread, second: Spread) -> bool:
    """Whether two ranges of times have a part in common."""
    if first.low is None or second.low is None:
        return False
    return first.high is None or second.low <= first.high


def bandwidth(pair: tuple[float, float] | None) -> str:
    """Bits a second, up and down, as a person says them."""
    return "free" if pair is None else f"{pair[0] / 1e6:g} Mbit/s up, {pair[1] / 1e6:g} Mbit/s down"
