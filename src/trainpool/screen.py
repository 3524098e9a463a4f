"""What a person sees of a comparison: a live view on a terminal, plain lines elsewhere, and a table at the end."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainpool.crew import News
from trainpool.display import duration
from trainpool.results import REFERENCE, Results
from trainpool.tables import COLUMNS, Units, headline, notes, percent
from trainpool.trial import Outcome, Trial

__all__ = ["Screen", "print_results"]

DROPPED = ("computing", "staleness", "of ideal", "rate", "wasted")
"""Columns of the table that a narrow terminal does without, the first one first; the report has all."""


class Screen:
    """Follows a comparison on a console."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        """The console is standard error's by default."""
        self.console = console or Console(stderr=True, quiet=quiet)
        self.total = self.done = 0
        self.first: int | None = None
        """Trials that were done when this process began."""
        self.running: dict[Trial, News | None] = {}
        self.accuracies: dict[Trial, float] = {}
        self.budget = 0
        """Samples of a trial; 0 while unknown."""
        self.started = time.monotonic()
        live = self.console.is_terminal and not quiet
        self.live = Live(console=self.console, transient=True, auto_refresh=False) if live else None

    def __enter__(self) -> "Screen":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def tell(self, news: Trial | News | Outcome, done: int, total: int) -> None:
        """A trial begins, goes on or has ended; see `trainpool.compare.Follower`."""
        self.done, self.total = done, total
        match news:
            case Trial():
                self.first = done if self.first is None else self.first
                self.running[news] = None
            case News(trial):
                self.running[trial] = news
                if news.accuracy is not None:
                    self.accuracies[trial] = news.accuracy
            case Outcome(trial=trial):
                self.running.pop(trial, None)
                self.budget = max(self.budget, news.samples)
                end = "failed: " + news.failed if news.failed else f"{percent(news.accuracy, 2)} at the end"
                self.say(
                    f"{done:>3} of {self.total}  {described(trial)}: {end}, {news.seconds:.4g} virtual s{self.left()}"
                )
        if self.live is not None:
            self.live.update(self.panel(), refresh=True)

    def left(self) -> str:
        """How long the rest will take, as far as that is known."""
        finished = self.done - (self.first or 0) + self.part()
        if not self.budget or finished <= 0 or self.done == self.total:
            return ""
        rest = (self.total - (self.first or 0) - finished) * (time.monotonic() - self.started) / finished
        return f", about {duration(rest)} left"

    def part(self) -> float:
        """How much of the trials under way is done, in trials."""
        return sum(min(1.0, news.samples / self.budget) for news in self.running.values() if news and self.budget)

    def panel(self) -> Group:
        """The live picture."""
        bar = ProgressBar(total=self.total, completed=self.done + self.part(), width=60)
        lines = []
        for trial, news in self.running.items():
            facts = ["begins"]
            if news is not None:
                facts = [f"{100 * min(1.0, news.samples / self.budget):.0f} %"] if self.budget else []
                facts += [f"{news.seconds:.4g} virtual s", f"{news.samples:,} samples"]
            if trial in self.accuracies:
                facts.append(f"accuracy {percent(self.accuracies[trial], 2)}")
            lines.append(Text(f"  {described(trial)}  " + "  ".join(facts)))
        title = Text(f"{self.done} of {self.total} trainings{self.left()}", style="bold")
        return Group(title, Padding(bar), *lines)  # a bar alone would not end its line


def described(trial: Trial) -> str:
    """A trial on a line."""
    return f"{trial.method}, rate {trial.rate:g}, seed {trial.seed}"


def results_table(results: Results, width: int) -> Table:
    """The results for a terminal of that many columns; ranges over seeds are below the medians."""
    console = Console(width=1000)
    for left_out in range(len(DROPPED) + 1):
        table = whole_table(results, DROPPED[:left_out])
        if console.measure(table).maximum <= width:
            break
    return table


def whole_table(results: Results, left_out: Sequence[str]) -> Table:
    """The table without some columns."""
    units = Units.of(results)
    columns = [column for column in COLUMNS if column.brief and column.title not in left_out]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        title = column.title.replace("to target", f"to\n{100 * results.target:.6g} %").replace("of ideal", "of\nideal")
        table.add_column(title, justify="left" if column.title == "method" else "right")
    for number, row in enumerate((*results.rows, results.reference)):
        cells = []
        for column in columns:
            value, bracket, rest = column.cell(row, results, units).partition(" (")
            more = "\n" + rest.replace(")", "", 1) if bracket else ""
            cells.append(Text.assemble(value, (more, "dim")))
        style = "italic" if row.method == REFERENCE else "bold" if number == 0 and row.reached else ""
        table.add_row(*cells, style=style, end_section=number == len(results.rows) - 1)
    return table


def print_results(results: Results, folder: Path) -> None:
    """The table, the answer in words, and where the rest is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(results_table(results, console.width))
    for line in (" ".join(notes(results)), headline(results)):
        console.print(line, markup=False, highlight=False)
    files = f"Plots, definitions and all numbers: {folder / 'report.html'}, {folder / 'results.json'}"
    console.print(files, markup=False, highlight=False, soft_wrap=True)
