"""Sixty of the random runs of `scripts/fuzz`, and that it finds what it looks for."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainpool.coordinator import Coordinator
from trainpool.events import Command, Send
from trainpool.pace import Pace

FUZZ: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "fuzz.py"))


def check(seeds: range) -> None:
    for seed in seeds:
        FUZZ["check"](seed)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_what_must_always_hold_holds(first: int) -> None:
    check(range(first, first + 10))


def uncounted(self: Coordinator, worker: str) -> None:
    """Drops what a worker held, and keeps no account of it."""
    for lease in self.units.held.get(worker, ()):
        self.drop(lease)
        self.units.drop(lease)


def forgetful(self: Coordinator, *saved: Any) -> None:
    """Restores all but the speeds."""
    restore(self, *saved)
    self.memory.pace = Pace()


def pushing(self: Coordinator, worker: str, *arguments: Any) -> Send:
    """Takes a worker that has a task for an idle one."""
    command = lease(self, worker, *arguments)
    self.memory.idle[worker] = None
    return command


def impatient(self: Coordinator, worker: str, reason: str) -> list[Command]:
    """Does not look at who is still at work."""
    leases, self.units.live = self.units.live, {}
    try:
        return miss(self, worker, reason)
    finally:
        self.units.live = leases


restore, lease, miss = Coordinator.restore, Coordinator.lease, Coordinator.miss


@pytest.mark.parametrize(
    ("method", "broken", "message", "seeds"),
    [
        ("lose", uncounted, "Ledger", range(60)),
        ("restore", forgetful, "after a save and a restore", range(60)),
        ("lease", pushing, "had not asked", range(60)),
        ("miss", impatient, "while others were at work", range(200, 201)),  # few runs stop at all
    ],
)
def test_a_broken_coordinator_is_found_out(
    method: str, broken: Callable[..., Any], message: str, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Coordinator, method, broken)
    with pytest.raises(AssertionError, match=message):
        check(seeds)
