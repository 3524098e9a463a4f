"""What a run leaves in its folder: metrics as it goes; a summary, the model and a plot at the end."""

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from trainpool import wire
from trainpool.drive import Drive, Moment
from trainpool.errors import ConfigError
from trainpool.events import Accepted, Rejected
from trainpool.journal import disk
from trainpool.kernels.protocol import Evaluation

__all__ = ["Record", "Recorder", "Summary", "append", "check_tensorboard", "read_metrics"]


class Record(TypedDict):
    """One evaluation: a line of `metrics.jsonl`."""

    seconds: float
    """Of training, when the evaluated model was taken."""
    samples: int
    epoch: float
    train_loss: float
    """A moving mean over tasks."""
    test_loss: float
    test_accuracy: float | None
    staleness: float
    """Mean over the updates so far, in versions."""
    updates: int
    rejected: int
    bytes_down: int
    bytes_up: int
    strategy: dict[str, float]
    """The strategy's own numbers."""


class Summary(TypedDict):
    """The end of a run: `summary.json`."""

    strategy: str
    finished: bool
    test_accuracy: float | None
    test_loss: float | None
    samples: int
    epochs: float
    seconds: float
    """Of training: from the first worker's readiness to the last update, over all resumes."""
    samples_per_second: float
    updates: int
    rejected: int
    staleness: float
    bytes_down: int
    bytes_up: int
    workers: int


def read_metrics(folder: Path) -> list[Record]:
    """The records of a run's folder; a line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    records: list[Record] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file. What a crash left of a line there stays a line of its own.

    Raises:
        RunError: the disk is full or fails.
    """
    with disk(path.parent), path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read() != b"\n"
        file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")


def check_tensorboard() -> None:
    """See that TensorBoard files can be written.

    Raises:
        ConfigError: they cannot.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard files need a package of their own: pip install 'trainpool[tensorboard]'")


class Recorder:
    """Writes a run's folder."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        """Continue what the folder has. Every method raises RunError where the disk is full or fails."""
        self.folder = folder
        self.history = read_metrics(folder)
        self.board: Any = None
        if tensorboard:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            with disk(folder):
                self.board = SummaryWriter(str(folder / "tensorboard"))

    def accepted(self, drive: Drive, command: Accepted) -> None:
        """Training loss, for TensorBoard."""
        if self.board is not None and math.isfinite(command.report.loss):
            with disk(self.folder):
                self.board.add_scalar("loss/train", command.report.loss, drive.coordinator.samples)

    def rejected(self, drive: Drive, command: Rejected) -> None:
        """Every rejection with its reason: a line of `rejected.jsonl`."""
        line = {
            "seconds": round(drive.now(), 3),
            "worker": command.worker,
            "task": command.task,
            "reason": command.reason,
        }
        append(self.folder / "rejected.jsonl", line)

    def evaluated(self, drive: Drive, result: Evaluation, moment: Moment) -> None:
        """One more record."""
        samples = moment.samples
        record = Record(
            seconds=round(moment.seconds, 3),
            samples=samples,
            epoch=round(samples / drive.coordinator.plan.samples, 4),
            train_loss=round(moment.loss, 6),
            test_loss=round(result.loss, 6),
            test_accuracy=result.accuracy,
            staleness=round(moment.staleness, 3),
            updates=moment.updates,
            rejected=moment.rejected,
            bytes_down=moment.bytes_down,
            bytes_up=moment.bytes_up,
            strategy=moment.report,
        )
        self.history.append(record)
        append(self.folder / "metrics.jsonl", record)
        if self.board is not None:
            with disk(self.folder):
                self.board.add_scalar("loss/test", result.loss, samples)
                if result.accuracy is not None:
                    self.board.add_scalar("accuracy/test", result.accuracy, samples)
                for name, value in record["strategy"].items():
                    self.board.add_scalar(f"strategy/{name}", value, samples)

    def refresh(self, drive: Drive) -> None:
        """Nothing: the folder has no clock."""

    def finish(self, drive: Drive, strategy: str) -> Summary:
        """Write `summary.json` and `curve.png`."""
        coordinator, memory = drive.coordinator, drive.coordinator.memory
        last = self.history[-1] if self.history and self.history[-1]["samples"] == coordinator.samples else None
        seconds = drive.now()
        summary = Summary(
            strategy=strategy,
            finished=drive.finished,
            test_accuracy=last["test_accuracy"] if last else None,
            test_loss=last["test_loss"] if last else None,
            samples=coordinator.samples,
            epochs=round(coordinator.samples / coordinator.plan.samples, 4),
            seconds=round(seconds, 3),
            samples_per_second=round(coordinator.samples / seconds, 2) if seconds else 0.0,
            updates=memory.updates,
            rejected=memory.rejected,
            staleness=round(memory.staleness / max(memory.updates, 1), 3),
            bytes_down=memory.bytes_down,
            bytes_up=memory.bytes_up,
            workers=drive.pool.workers,
        )
        with disk(self.folder):
            wire.write(self.folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
            if self.board is not None:
                self.board.close()
            if self.history:
                from trainpool.plots import curves

                curves({strategy: self.history}, self.folder / "curve.png")
        return summary
