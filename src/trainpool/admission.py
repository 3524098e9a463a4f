"""Whether an answer may reach the strategy, and the reason when it may not."""

import math
import statistics
from dataclasses import dataclass, field

import numpy as np

from trainpool.messages import Report, ShardId, Task
from trainpool.vector import Layout, Vector, norm

__all__ = ["Admission"]

WINDOW = 31
"""Admitted updates that the running median looks back on."""
ENOUGH = 5
"""Admitted updates before a norm can be judged."""
ALIKE = 2.0
"""How many times longer the second answer may be: machines differ in rounding, and partial answers in steps."""


@dataclass(frozen=True)
class Doubt:
    """An answer that was refused for its length alone."""

    offset: int
    """Of the task, within its shard."""
    worker: str
    length: float


@dataclass
class Admission:
    """Checks in order of cost: the message, the shapes, that all is finite, the norm against the running median.

    A long update may be honest: one hard batch, late in training, moves parameters that hardly moved before. It is
    refused, and believed when another worker finds the same for the same task.
    """

    limit: float = 20.0
    """An update longer than this many times the median is refused. Norms are taken per square root of a step, since
    tasks differ in steps: that is how far a random walk gets, and honest training lies between it and a line."""
    norms: list[float] = field(default_factory=list)
    """Of the last admitted updates."""
    doubts: dict[ShardId, Doubt] = field(default_factory=dict)
    """Of each shard's next task, where there was one."""

    def judge(
        self,
        task: Task,
        report: Report,
        delta: Vector,
        buffers: Vector,
        layout: Layout,
        *,
        known: Vector | None = None,
        worker: str = "",
        alone: bool = False,
    ) -> str | None:
        """None where the answer is admitted, otherwise why it is not. An admitted norm joins the running median.

        `known` are the model's buffers `[size - trainable]`: what is infinite in them, as in an attention's mask, may
        stay so.
        `alone` says that there is no other worker to ask: then the same one's second answer will do.
        """
        steps = report.steps
        fits = steps == task.steps or (task.partial and steps < task.steps)
        if not fits or report.samples != steps * task.batch:
            return f"it reports {steps} steps, {report.samples} samples; the task had {task.steps} steps"
        if (delta.shape, buffers.shape) != layout.shapes:
            return f"shapes {delta.shape} and {buffers.shape} do not fit the model"
        if delta.dtype.kind != "f" or buffers.dtype.kind != "f":
            return f"types {delta.dtype} and {buffers.dtype} are not floating point"
        if not math.isfinite(report.loss):
            return f"its loss is {report.loss}"
        if not math.isfinite(report.seconds):
            return f"its seconds are {report.seconds}"
        length = norm(delta)
        if not math.isfinite(length):
            return "its delta has NaN or infinite elements, or is too long to measure"
        if buffers.size:
            strange = ~np.isfinite(buffers)
            if known is not None:
                strange &= buffers != known
            if strange.any():
                return "its buffers have NaN or infinite elements"
        length /= math.sqrt(steps)
        if len(self.norms) >= ENOUGH:
            typical = statistics.median(self.norms)
            if length > self.limit * typical and not self.confirmed(task, worker, length, alone):
                self.doubts[task.shard] = Doubt(task.offset, worker, length)
                return f"its norm per root step, {length:.3g}, is over {self.limit:g} times the median, {typical:.3g}"
        if length > 0:  # a task at rate 0, as a warm-up begins, moves nothing and says nothing of the norms to come
            self.norms = [*self.norms, length][-WINDOW:]
        if self.doubts:
            self.doubts.pop(task.shard, None)
        return None

    def confirmed(self, task: Task, worker: str, length: float, alone: bool) -> bool:
        """Whether another worker's answer to the same task was about as long."""
        doubt = self.doubts.get(task.shard)
        if doubt is None or doubt.offset != task.offset or (doubt.worker == worker and not alone):
            return False
        return length <= ALIKE * doubt.length
