"""What happens to the coordinator, and what it answers: events in, commands out."""

from typing import TypeAlias

import msgspec

from trainpool.messages import Report, Task
from trainpool.vector import Vector

__all__ = [
    "SUPERSEDED",
    "Accepted",
    "Asked",
    "Command",
    "Event",
    "Failed",
    "Finished",
    "Joined",
    "Left",
    "Rejected",
    "Restarted",
    "Returned",
    "Send",
    "Stopped",
    "Tick",
    "Wait",
    "WorkerId",
]

WorkerId: TypeAlias = str

SUPERSEDED = "another worker answered first"
"""The reason of a rejection that is nobody's fault."""


class Joined(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A worker is there."""

    worker: WorkerId


class Asked(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A worker is idle and asks for a task. It is answered by `Send`, `Wait` or `Finished`."""

    worker: WorkerId


class Returned(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A worker answered a task. The delta and the buffers come beside the event."""

    worker: WorkerId
    report: Report


class Failed(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A worker could not do a task."""

    worker: WorkerId
    task: int
    reason: str


class Left(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A worker is gone, with whatever it was doing."""

    worker: WorkerId


class Tick(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Time passed."""


class Restarted(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The coordinator was restored from a journal; no worker of before is there any more."""


Event: TypeAlias = Joined | Asked | Returned | Failed | Left | Tick | Restarted


class Send(msgspec.Struct, frozen=True, gc=False):
    """Give a worker this task, with the parameters and buffers (views: copy them before the next event)."""

    worker: WorkerId
    task: Task
    parameters: Vector
    buffers: Vector
    anchor: Vector | None


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Nothing for this worker now; it will be sent a task when there is one."""

    worker: WorkerId


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """An update was merged."""

    worker: WorkerId
    task: Task
    report: Report
    staleness: int


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """An answer was not merged, for this reason; nothing else changed."""

    worker: WorkerId
    task: int
    reason: str


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The run is complete."""


class Stopped(msgspec.Struct, frozen=True, gc=False):
    """The run cannot go on, for this reason."""

    reason: str


Command: TypeAlias = Send | Wait | Accepted | Rejected | Finished | Stopped
