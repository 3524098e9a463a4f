"""What a simulated run of one method came to, beside what every run leaves: where its machines' time went."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainpool import auto, wire
from trainpool.errors import ConfigError
from trainpool.machines import Machines
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.fleet import Fleet
from trainpool.pools.simulated import SimulatedPool
from trainpool.pools.timing import timing
from trainpool.record import Record, Summary
from trainpool.strategies import AnyStrategy, name_of
from trainpool.tables import bandwidth, measured, percent, size
from trainpool.trial import Timeline, Work

if TYPE_CHECKING:
    from trainpool.experiment import Experiment

__all__ = ["finish", "schedule", "schedule_words", "words"]

TRACKS = 16
"""Workers in the picture."""


def finish(
    folder: Path,
    summary: Summary,
    history: Sequence[Record],
    machines: Machines,
    pool: SimulatedPool,
    target: float | None = None,
) -> dict[str, Any]:
    """Write `simulation.json` and `timeline.png` into a finished run's folder; returns the summary with more numbers.

    Args:
        folder: of the run.
        summary: as the run wrote it; its seconds are virtual.
        history: its evaluations.
        machines: that were simulated.
        pool: that ran.
        target: an accuracy whose time is wanted, 0 to 1.
    """
    from trainpool.report_plots import overview, picture

    work, fleet = Work.of(pool), pool.fleet
    reached = next((r for r in history if target is not None and (r["test_accuracy"] or 0.0) >= target), None)
    rate = summary["samples_per_second"]
    found = {
        **summary,
        "machines": fleet.describe(),
        "bandwidth": bandwidth(machines.bandwidth),
        "target": target,
        "target_seconds": reached and reached["seconds"],
        "target_bytes_down": reached and reached["bytes_down"],
        "target_bytes_up": reached and reached["bytes_up"],
        "utilisation": round(work.utilisation, 4),
        "waiting": round(work.waiting / work.there, 4) if work.there else 0.0,
        "transferring": round(max(0.0, work.there - work.computing - work.waiting) / (work.there or 1.0), 4),
        "waste": round(work.waste(summary["samples"]), 4),
        "throughput_speedup": round(rate / fleet.best, 4),
        "throughput_share": round(rate / fleet.total, 4),
    }
    wire.write(folder / "simulation.json", json.dumps(msgspec.to_builtins(found), indent=2).encode())
    whole = Timeline.of(pool, TRACKS, pool.room, 0.0)
    if whole.end > whole.start:
        picture(overview(whole, Timeline.of(pool, TRACKS, pool.room, 0.4 * pool.now())), folder / "timeline.png")
    return found


def words(folder: Path, found: dict[str, Any]) -> dict[str, str]:
    """The numbers of `finish` for a person."""
    machines = found["machines"]
    rows = {
        **measured(found["test_accuracy"], found["test_loss"]),
        "samples": f"{found['samples']:,} in {found['seconds']:.4g} virtual s: {found['samples_per_second']:,.0f} a "
        f"second, {found['throughput_speedup']:.2f} times the fastest machine's speed",
        "machines": f"{machines['machines']}, {machines['total']:,.0f} samples a second together, of which "
        f"{percent(found['throughput_share'], 0)} were merged",
        "their time": f"{percent(found['utilisation'], 0)} computing, "
        f"{percent(found['transferring'], 0)} transferring, {percent(found['waiting'], 0)} waiting",
        "wasted": f"{percent(found['waste'])} of the computed samples",
        "updates": f"{found['updates']:,} merged, {found['rejected']} rejected, mean staleness {found['staleness']:g}",
        "traffic": f"{size(found['bytes_down'])} to workers, {size(found['bytes_up'])} back ({found['bandwidth']})",
        "files": f"{folder}: model.safetensors, curve.png, timeline.png, metrics.jsonl, summary.json, simulation.json",
    }
    if found["target"] is not None:
        goal = f"{100 * found['target']:.6g} %"
        when = (
            f"{goal} after {found['target_seconds']:.4g} virtual s, {size(found['target_bytes_down'])} to workers, "
            f"{size(found['target_bytes_up'])} back"
            if found["target_seconds"] is not None
            else f"{goal} was never reached within the budget"
        )
        title = next(iter(rows))  # the loss, where there is no accuracy
        rows = {title: rows.pop(title), "target": when, **rows}
    return rows


def schedule(
    experiment: "Experiment",
    strategy: AnyStrategy | str,
    recipe: Recipe,
    pace: Pace,
    fleet: Fleet,
    *,
    epochs: float,
    shards: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """How a run's work would be scheduled, without training; see `trainpool.pools.timing.timing`.

    All shards are equally large here, so that nothing need be cut: no sample is read.

    Raises:
        ConfigError: the settings do not fit.
        RunError: nothing can happen any more, and the run is not finished.
    """
    from trainpool.kernels.torch import dtype_of, layout_of

    if epochs <= 0 or shards < 0:
        raise ConfigError(f"epochs ({epochs:g}) must be above 0, shards ({shards}) not negative")
    samples = len(experiment.sources()[0])
    size = layout_of(experiment.model).size * dtype_of(experiment.model).itemsize
    reason = ""
    if isinstance(strategy, str):
        batch = recipe.batch_size or max(1, samples // len(fleet))
        choice = auto.choose(SimulatedPool(fleet, fidelity="timing").conditions(batch), size)
        strategy, reason = choice.strategy, choice.reason
    count = shards or min(strategy.shards(len(fleet)), samples)
    batch = recipe.batch_size or max(1, samples // count)
    steps = max(1, round(epochs * samples / count / batch))
    found = timing(
        strategy, fleet, shards=count, steps=steps, batch=batch, size=size, recipe=recipe, pace=pace, seed=seed
    )
    return {
        "strategy": name_of(strategy),
        "reason": reason,
        "machines": fleet.describe(),
        **dataclasses.asdict(found),
    }


def schedule_words(found: dict[str, Any]) -> dict[str, str]:
    """The numbers of `schedule` for a person."""
    rows = {
        "method": found["strategy"] + (f", for {found['reason']}" if found["reason"] else ""),
        "end": found["end"],
        "samples": f"{found['merged']:,} in {found['seconds']:.4g} virtual s",
        "their time": f"{percent(found['utilisation'], 0)} computing",
        "wasted": f"{percent(found['wasted'] / (found['computed'] or 1))} of the computed samples",
        "updates": f"{found['updates']:,} merged, {found['refused']:,} refused",
        "traffic": f"{size(found['down'])} to workers, {size(found['up'])} back",
        "events": f"{found['events']:,} in {found['real']:.3g} s of this computer",
    }
    return rows
