"""Whether an answer may reach the strategy, and the reason when it may not."""

import math
from dataclasses import dataclass, field
from statistics import median

from trainpool.messages import Report, ShardId, Task
from trainpool.statistics import flaw
from trainpool.vector import Layout, Vector, norm

__all__ = ["Admission"]

WINDOW = 31
"""Admitted updates that the running median looks back on."""
ENOUGH = 5
"""Admitted updates before a norm can be judged."""
LONGEST = 1e9
"""The norm that no update may have: far beyond any training, but its gradient, Δ/rate, has a square in float32."""
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
        known: Vector,
        worker: str = "",
        alone: bool = False,
    ) -> str | None:
        """None where the answer is admitted, otherwise why it is not. An admitted norm joins the running median.

        `known` are the model's buffers `[size - trainable]`, in the run's own type: what is infinite in them, as in an
        attention's mask, may stay so.
        `alone` says that there is no other worker to ask: then the same one's second answer will do.
        """
        steps = report.steps
        fits = steps == task.steps or (task.partial and steps < task.steps)
        if not fits or report.samples != steps * task.batch:
            return f"it reports {steps} steps, {report.samples} samples; the task had {task.steps} steps"
        if (delta.shape, buffers.shape) != layout.shapes:
            return f"shapes {delta.shape} and {buffers.shape} do not fit the model"
        if delta.dtype != known.dtype or buffers.dtype != known.dtype:
            return f"types {delta.dtype} and {buffers.dtype} are not the run's, {known.dtype}"
        if not math.isfinite(report.loss):
            return f"its loss is {report.loss}"
        if not math.isfinite(report.seconds):
            return f"its seconds are {report.seconds}"
        length = norm(delta)
        if not length < LONGEST:
            return f"its delta has NaN or infinite elements, or is longer than {LONGEST:g}: did training diverge?"
        if buffers.size and (reason := flaw(layout, buffers, known)):
            return reason
        length /= math.sqrt(steps)
        if len(self.norms) >= ENOUGH:
            typical = median(self.norms)
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
