"""Whether an answer may reach the strategy, and the reason when it may not."""

import math
import statistics
from dataclasses import dataclass, field

import numpy as np

from trainpool.messages import Report, Task
from trainpool.vector import Layout, Vector, norm

__all__ = ["Admission"]

WINDOW = 31
"""Admitted updates that the running median looks back on."""
ENOUGH = 5
"""Admitted updates before a norm can be judged."""


@dataclass
class Admission:
    """Checks in order of cost: the message, the shapes, that all is finite, the norm against the running median."""

    limit: float = 20.0
    """An update longer than this many times the median is refused. Norms are taken per square root of a step, since
    tasks differ in steps: that is how far a random walk gets, and honest training lies between it and a line."""
    norms: list[float] = field(default_factory=list)
    """Of the last admitted updates."""

    def judge(self, task: Task, report: Report, delta: Vector, buffers: Vector, layout: Layout) -> str | None:
        """None where the answer is admitted, otherwise why it is not. An admitted norm joins the running median."""
        short = task.partial and report.steps < task.steps
        if (report.steps != task.steps and not short) or report.samples != report.steps * task.batch:
            return f"it reports {report.steps} steps, {report.samples} samples; the task had {task.steps} steps"
        if delta.shape != (layout.trainable,) or buffers.shape != (layout.size - layout.trainable,):
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
        if buffers.size and not bool(np.isfinite(buffers).all()):
            return "its buffers have NaN or infinite elements"
        length /= math.sqrt(report.steps)
        if len(self.norms) >= ENOUGH:
            typical = statistics.median(self.norms)
            if length > self.limit * typical:
                return f"its norm per root step, {length:.3g}, is over {self.limit:g} times the median, {typical:.3g}"
        if length > 0:  # a task at rate 0, as a warm-up begins, moves nothing and says nothing of the norms to come
            self.norms = [*self.norms, length][-WINDOW:]
        return None
