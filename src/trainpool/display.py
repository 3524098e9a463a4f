"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainpool.drive import Drive, Moment
from trainpool.events import SUPERSEDED, Accepted, Rejected
from trainpool.kernels.protocol import Evaluation

__all__ = ["Display", "duration"]

LINE_SECONDS = 10.0
RATE_SECONDS = 15.0
WORKERS_SHOWN = 12


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Display:
    """Follows a run on a console."""

    def __init__(self, title: str, remark: str = "", console: Console | None = None) -> None:
        """`title` names the run, `remark` is said once; by default on standard error, so that output can be piped."""
        self.console = console or Console(stderr=True)
        self.title, self.remark = title, remark
        self.live = Live(console=self.console, transient=True, auto_refresh=False) if self.console.is_terminal else None
        self.recent: deque[tuple[float, int]] = deque()
        self.last_line = time.monotonic()
        self.result: Evaluation | None = None
        self.note = "workers are starting"
        self.staleness = 0

    def __enter__(self) -> "Display":
        if self.remark:
            self.console.print(self.remark, soft_wrap=True, markup=False, highlight=False)
        if self.live is not None:
            self.live.start()
        else:
            self.console.print(self.title, soft_wrap=True, markup=False, highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def accepted(self, drive: Drive, command: Accepted) -> None:
        """Keep the numbers that are shown."""
        self.staleness = command.staleness
        self.note = ""

    def rejected(self, drive: Drive, command: Rejected) -> None:
        """Show why, unless it only came second: copies of late tasks are meant to."""
        if command.reason == SUPERSEDED:
            return
        self.note = f"{command.worker}'s update was rejected: {command.reason}"
        if self.live is None:
            self.console.print(self.note, soft_wrap=True, markup=False, highlight=False)

    def evaluated(self, drive: Drive, result: Evaluation, moment: Moment) -> None:
        """Show the new accuracy."""
        self.result = result
        if self.live is None:
            self.line(drive)

    def refresh(self, drive: Drive) -> None:
        """Redraw the panel, or print a line where the last one is old."""
        now = time.monotonic()
        self.recent.append((now, drive.coordinator.samples))
        while now - self.recent[0][0] > RATE_SECONDS:
            self.recent.popleft()
        if drive.interrupted:
            self.note = "stopping: running tasks end, then all is saved (Ctrl+C again leaves at once)"
        elif drive.finished and not self.note:
            self.note = "evaluating the finished model"
        if self.live is not None:
            self.live.update(self.panel(drive), refresh=True)
        elif now - self.last_line > LINE_SECONDS:
            self.line(drive)

    def rate(self) -> float:
        """Samples a second lately."""
        if len(self.recent) < 2:
            return 0.0
        (begin, first), (end, last) = self.recent[0], self.recent[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def progress(self, drive: Drive) -> list[str]:
        """How far the run is, as short phrases."""
        coordinator = drive.coordinator
        budget, samples, rate = coordinator.plan.budget, coordinator.samples, self.rate()
        facts = [f"{samples:,}/{budget:,} samples", f"epoch {samples / coordinator.plan.samples:.2f}"]
        if rate:
            facts += [f"{rate:,.0f} samples/s", f"{duration((budget - samples) / rate)} left"]
        return facts

    def quality(self, drive: Drive) -> list[str]:
        """How good the model is, and what was in the way."""
        memory, facts = drive.coordinator.memory, []
        if memory.updates:
            facts.append(f"loss {memory.loss:.4f}")
        if self.result is not None:
            accuracy = self.result.accuracy
            facts.append(f"test loss {self.result.loss:.4f}" if accuracy is None else f"test accuracy {accuracy:.2%}")
        if drive.coordinator.strategy.asynchronous:
            facts.append(f"staleness {self.staleness}")
        if memory.rejected:
            facts.append(f"{memory.rejected} rejected")
        return facts

    def line(self, drive: Drive) -> None:
        """One plain line."""
        self.last_line = time.monotonic()
        clock = f"{duration(drive.now()):>8}{' virtual' if drive.pool.virtual else ''}"
        text = f"{clock}  " + "  ".join(self.progress(drive) + self.quality(drive))
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def panel(self, drive: Drive) -> Group:
        """The live picture."""
        coordinator, memory = drive.coordinator, drive.coordinator.memory
        bar = Padding(
            ProgressBar(total=coordinator.plan.budget, completed=coordinator.samples, width=60), 0
        )  # ends its line
        workers = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("worker", "samples/s", "task", "staleness"):
            workers.add_column(column, justify="left" if column == "worker" else "right")
        now = drive.now()
        leases = {lease.worker: lease for lease in memory.leases.values()}
        for worker in list(memory.workers)[:WORKERS_SHOWN]:
            lease, seconds = leases.get(worker), memory.pace.step_seconds(worker)
            batch = coordinator.plan.shards[0].batch
            workers.add_row(
                worker,
                f"{batch / seconds:,.0f}" if seconds else "measuring",
                f"{lease.task.steps} steps, {now - lease.since:.1f} s" if lease else "waits",
                str(coordinator.state.version - lease.task.version) if lease else "",
            )
        more = len(memory.workers) - WORKERS_SHOWN
        rest = [Text(f"and {more} more", style="dim")] if more > 0 else []
        note = [Text(self.note, style="yellow")] if self.note else []
        facts = [Text("  ".join(line)) for line in (self.progress(drive), self.quality(drive))]
        return Group(Text(self.title, style="bold"), Padding(bar), *facts, workers, *rest, *note)
