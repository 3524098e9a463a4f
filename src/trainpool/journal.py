"""The durable record of a run: every event in order, so that replaying them rebuilds the coordinator bit for bit.

    journal.sqlite         events (number, time, message, blob) and snapshots (number)
    blobs/N.safetensors    the arrays of event N, an update
    snapshots/N.safetensors   the coordinator after event N

An update is on the disk before the coordinator sees it, so an accepted one survives anything. Other events are only
written together with the next update: until then no result depends on them. A snapshot makes the blobs before it
superfluous; they are deleted, unless the journal keeps everything for replay.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from trainpool import wire
from trainpool.coordinator import Coordinator
from trainpool.errors import MessageError, RunError
from trainpool.events import Event, Restarted, Returned
from trainpool.vector import Vector

__all__ = ["Journal", "replay"]

SCHEMA = """
create table if not exists events (number integer primary key, now real not null, body blob not null) strict;
create table if not exists snapshots (number integer primary key) strict;
"""


class Journal:
    """One run's record. The folder is locked while it is open."""

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        """Open the journal in `folder`, or begin one; `keep` keeps what a snapshot makes superfluous.

        Raises:
            RunError: another process has it open, it is damaged, or the disk is full or fails.
        """
        self.folder, self.keep = folder, keep
        self.waiting: list[tuple[int, float, bytes]] = []
        with disk(folder):
            for name in ("blobs", "snapshots"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(folder / "journal.sqlite", isolation_level=None, timeout=0.2)
        try:
            # One writer alone: the lock is the operating system's, so it ends with the process, however that ends.
            self.database.execute("pragma locking_mode = exclusive")
            self.database.execute("pragma journal_mode = wal")
            self.database.execute("pragma synchronous = full")
            self.database.executescript(SCHEMA)
            row = self.database.execute("select max(number) from events").fetchone()
        except sqlite3.DatabaseError as error:
            self.database.close()
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # the rest of the number says how it came to that
                raise RunError(f"{folder} is in use by another process ({error}); wait for it or stop it") from error
            if isinstance(error, sqlite3.OperationalError):
                raise unwritable(folder, error) from error
            raise RunError(f"{folder / 'journal.sqlite'} is damaged: {error}") from error
        self.number = row[0] or 0

    @property
    def begun(self) -> bool:
        """Whether there is a snapshot to recover from."""
        return self.database.execute("select 1 from snapshots limit 1").fetchone() is not None

    def append(self, event: Event, now: float, delta: Vector | None = None, buffers: Vector | None = None) -> None:
        """Record an event. When this returns after a `Returned`, it and all events before it are on the disk.

        Raises:
            RunError: the disk is full or fails; the coordinator must not see the event then.
        """
        if delta is not None and buffers is not None:
            with disk(self.folder):
                arrays = {"delta": delta, "buffers": buffers}
                wire.write(self.blob(self.number + 1), wire.encode(None, arrays))
        # Only now: an event whose arrays are not on the disk must never be written.
        self.number += 1
        self.waiting.append((self.number, now, msgspec.msgpack.encode(event)))
        if isinstance(event, Returned | Restarted):
            self.flush()

    def flush(self) -> None:
        """Write the waiting events in one transaction."""
        with disk(self.folder):
            self.database.execute("begin immediate")
            try:
                self.database.executemany("insert into events values (?, ?, ?)", self.waiting)
                self.database.execute("commit")
            except sqlite3.Error:
                if self.database.in_transaction:  # SQLite itself rolls back where the disk is full
                    self.database.execute("rollback")
                raise
        self.waiting.clear()

    def snapshot(self, coordinator: Coordinator) -> None:
        """Save the coordinator as it is after the last event, then drop what this makes superfluous."""
        tree, tensors = coordinator.save()
        with disk(self.folder):
            self.flush()
            wire.write(self.image(self.number), wire.encode(tree, tensors))
            self.database.execute("insert or ignore into snapshots values (?)", (self.number,))
        if not self.keep:
            with disk(self.folder):
                for path in [*(self.folder / "blobs").iterdir(), *(self.folder / "snapshots").iterdir()]:
                    if path != self.image(self.number):
                        path.unlink()
                self.database.execute("delete from snapshots where number < ?", (self.number,))

    def recover(self, coordinator: Coordinator, *, from_start: bool = False) -> float:
        """Bring a new coordinator to where the journal ends; returns the time of the last event.

        From the last snapshot, or from the first one where `from_start` (which needs a journal that keeps everything).

        Raises:
            RunError: the journal is empty or damaged.
        """
        order = "asc" if from_start else "desc"
        row = self.database.execute(f"select number from snapshots order by number {order} limit 1").fetchone()
        if row is None:
            raise RunError(f"{self.folder} has no snapshot: the run never began; start it anew")
        try:
            coordinator.restore(*wire.read(self.image(row[0]), Any))
            now = 0.0
            for number, now, event in self.events(row[0]):
                arrays = wire.read(self.blob(number), type(None))[1] if isinstance(event, Returned) else {}
                coordinator.handle(event, now, arrays.get("delta"), arrays.get("buffers"))
        except MessageError as error:
            raise RunError(f"the journal is damaged: {error}") from error
        last = self.database.execute("select max(now) from events").fetchone()[0]
        return float(last or 0.0)

    def events(self, after: int = 0) -> Iterator[tuple[int, float, Event]]:
        """Every event whose number is above `after`: number, time, event."""
        rows = self.database.execute("select number, now, body from events where number > ? order by number", (after,))
        for number, now, body in rows:
            try:
                yield number, now, msgspec.msgpack.decode(body, type=Event)
            except msgspec.MsgspecError as error:
                raise RunError(f"event {number} of {self.folder} is damaged: {error}") from error

    def blob(self, number: int) -> Path:
        """The file of an event's arrays."""
        return self.folder / "blobs" / f"{number}.safetensors"

    def image(self, number: int) -> Path:
        """The file of a snapshot."""
        return self.folder / "snapshots" / f"{number}.safetensors"

    def close(self) -> None:
        """Release the folder. Events that no update followed are written as well, where the disk allows it."""
        with suppress(RunError):
            if self.waiting:
                self.flush()
        self.database.close()


class disk:  # noqa: N801
    """Turns the disk's failures into one line that says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | sqlite3.Error):
            raise unwritable(self.folder, error) from error


def unwritable(folder: Path, error: OSError | sqlite3.Error) -> RunError:
    """The error of a disk that is full or fails."""
    said = f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}"
    if not os.access(folder / "config.json", os.F_OK):  # no run yet
        return RunError(f"{said}; make room, or choose another folder")
    return RunError(f"{said}; nothing accepted is lost: make room, then `trainpool resume {folder}`")


def replay(folder: Path, coordinator: Coordinator) -> Coordinator:
    """The coordinator as a complete journal (one that keeps everything) leaves it, replayed from its first event."""
    journal = Journal(folder, keep=True)
    try:
        journal.recover(coordinator, from_start=True)
    finally:
        journal.close()
    return coordinator
