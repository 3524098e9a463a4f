"""A comparison as one HTML file that needs nothing else: no network, no scripts, readable on a phone and on paper."""

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape

from trainpool import report_plots as plots
from trainpool.question import Question
from trainpool.results import REFERENCE, Results, Row
from trainpool.tables import COLUMNS, Units, bandwidth, headline, notes, passes, percent, size
from trainpool.trial import Outcome, Trial

__all__ = ["command", "report"]

MACHINES = (
    *("workers", "spread", "speed", "churn", "session", "crash", "latency", "hidden", "slowdown"),
    *("lost", "duplicated", "trace"),
)
"""Of the machines' options, those that are spelt as they are kept."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #5c6670; --page: #ffffff; --card: #f5f6f8; --line: #d9dde2;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a3abb3; --page: #15181b; --card: #1e2226;
  --line: #363c42; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 68rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0.4rem 0 0.8rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 0.6rem; }
.answer { font-size: 1.12rem; background: var(--card); border-left: 4px solid var(--mark); padding: 0.8rem 1rem;
  margin: 0; border-radius: 0 6px 6px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 0.35rem 0.45rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; white-space: nowrap; position: sticky; left: 0; background: var(--page); }
td { white-space: nowrap; }
small { display: block; font-weight: 400; color: var(--soft); }
tr.best, tr.best th { background: var(--card); }
tr.best th { color: var(--mark); }
tr.reference { font-style: italic; }
caption { caption-side: bottom; text-align: left; color: var(--soft); padding-top: 0.4rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.5rem; }
.pair figure { min-width: 0; }
figure { margin: 0.6rem 0 1.4rem; }
figure svg { display: block; width: 100%; min-width: 25rem; max-width: 44rem; height: auto; }
figcaption { color: var(--soft); font-size: 0.9rem; max-width: 44rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1rem; margin: 0; font-size: 0.92rem; }
dt { font-weight: 600; } dd { margin: 0; }
pre { background: var(--card); padding: 0.7rem 0.9rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 0.85rem; }
.note { color: var(--soft); font-size: 0.92rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0.1rem; } dd { margin-bottom: 0.5rem; } }
@media print { :root { --ink: #000; --soft: #444; --page: #fff; --card: #f2f2f2; --line: #bbb; --mark: #004c78; }
  body { max-width: none; padding: 0; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .scroll { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.3rem; } td { white-space: normal; } figure svg { min-width: 0; max-width: 15cm; } }
"""


def report(question: Question, results: Results, done: Mapping[Trial, Outcome]) -> str:
    """The page."""
    taken = {row.method: seeds_of(row, question, done) for row in (results.reference, *results.rows)}
    taken = {label: taken[label] for label in question.labels}
    what = question.experiment.rpartition("/")[2] or f"{question.model} on {question.data}"
    count = len(question.machines.fleet())
    title = f"{what}: {len(question.methods)} methods on {count} machines"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="answer">{unbroken(escape(headline(results)))}</p>',
        section("Methods", table(results), f'<p class="note">{escape(" ".join(notes(results)))}</p>'),
        section("Accuracy", '<div class="pair">', *accuracy(results, taken), "</div>"),
        section("Time to the target", times(results, question.labels)),
        section("Where the time went", timeline(results, taken)),
        section("Learning rates", grid(results)),
        section("The question", facts(question, results), f"<pre>{escape(command(question))}</pre>"),
        section("What the columns mean", meanings()),
        section("What this is, and is not", honesty()),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def seeds_of(row: Row, question: Question, done: Mapping[Trial, Outcome]) -> list[Outcome]:
    """The outcomes of a method with its best rate, one a seed."""
    return [done[Trial(row.method, row.rate, seed)] for seed in question.seeds]


def section(title: str, *parts: str) -> str:
    """A heading and what is below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def table(results: Results) -> str:
    """All columns, the reference last."""
    units = Units.of(results)
    heads = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in COLUMNS)
    body = []
    for number, row in enumerate((*results.rows, results.reference)):
        kind = "reference" if row.method == REFERENCE else "best" if number == 0 and row.reached else "other"
        first, *rest = (column.cell(row, results, units) for column in COLUMNS)
        cells = "".join(f"<td>{small(cell)}</td>" for cell in rest)
        body.append(f'<tr class="{kind}"><th scope="row">{small(first)}</th>{cells}</tr>')
    rows = "\n".join(body)
    return f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def unbroken(text: str) -> str:
    """Numbers stay with their units."""
    return re.sub(r"(\d) (%|s|min|h|[kMGT]?B)\b", "\\1\u00a0\\2", text.replace(" %", "\u00a0%"))


def small(cell: str) -> str:
    """A cell with what is in brackets on a line of its own."""
    value, bracket, rest = cell.partition(" (")
    return escape(value) + (f"<small>{escape(rest.replace(')', '', 1))}</small>" if bracket else "")


def drawn(svg: str, caption: str) -> str:
    """A plot and what it says."""
    return f'<figure><div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def accuracy(results: Results, taken: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Accuracy against time and against bytes."""
    units = Units.of(results)
    said = "; ".join(
        f"{row.method} {units.spread(row.seconds)} to the target, {percent(row.accuracy.median)} at the end"
        for row in (*results.rows, results.reference)
    )
    bytes_said = "; ".join(f"{row.method} {size(total(row))} to the target" for row in results.rows)
    return [
        drawn(
            plots.svg(plots.against_time(results, taken), "time", f"Test accuracy against virtual time. {said}."),
            "Lines are medians over seeds, bands the range. Dashed: plain SGD on the fastest machine alone. "
            "Dotted: the target.",
        ),
        drawn(
            plots.svg(plots.against_bytes(results, taken), "bytes", f"Test accuracy against bytes. {bytes_said}."),
            "What an accuracy costs in traffic, both ways, over all workers. The scale is logarithmic.",
        ),
    ]


def total(row: Row) -> float | None:
    """Bytes both ways until the target."""
    down, up = row.target_down.median, row.target_up.median
    return None if down is None or up is None else down + up


def times(results: Results, labels: Sequence[str]) -> str:
    """Bars of the time to the target."""
    units = Units.of(results)
    rows = (*results.rows, results.reference)
    said = "; ".join(f"{row.method} {units.spread(row.seconds)}" for row in rows)
    return drawn(
        plots.svg(plots.bars(results, labels), "bars", f"Time to the target: {said}."),
        f"Bars are medians, thin lines the range over seeds. The dashed line is the ideal: the best machine's time "
        f"divided by {results.capacity.ideal:.2f}, the machines' throughput over the best one's.",
    )


def timeline(results: Results, taken: Mapping[str, Sequence[Outcome]]) -> str:
    """What a few workers did."""
    lines = {row.method: taken[row.method][0].timeline for row in results.rows}
    lines = {label: line for label, line in lines.items() if line.end > line.start}
    if not lines:
        return ""
    said = "; ".join(f"{row.method} {percent(row.utilisation.median, 0)} of the time" for row in results.rows)
    return drawn(
        plots.svg(plots.timelines(lines), "timeline", f"What workers did. They computed: {said}."),
        "A few workers, the fastest above, with their speed in samples a second, for a while from 40 % of the run on, "
        "with the first seed. Orange is time lost in waiting for others.",
    )


def grid(results: Results) -> str:
    """Every learning rate that was tried."""
    units, rows = Units.of(results), (*results.rows, results.reference)
    rates = sorted({point.rate for row in rows for point in row.grid})
    heads = "".join(f'<th scope="col">{rate:g}</th>' for rate in rates)
    body = []
    for row in rows:
        cells, points = [], {point.rate: point for point in row.grid}
        for rate in rates:
            if (point := points.get(rate)) is None:
                cells.append("<td></td>")
                continue
            first = f"{units.time(point.seconds)} {units.name}" if point.seconds is not None else "never"
            text = f"{first}<small>{'failed' if point.failed else percent(point.accuracy, 2)}</small>"
            cells.append(f"<td>{f'<strong>{text}</strong>' if point.rate == row.rate else text}</td>")
        body.append(f'<tr><th scope="row">{escape(row.method)}</th>{"".join(cells)}</tr>')
    lines = "\n".join(body)
    return (
        '<div class="scroll"><table>\n<caption>Time to the target, and accuracy at the end below it, with the first '
        "seed. Bold is what was taken; a best rate at the edge of the grid may not be the best there is.</caption>\n"
        f'<thead><tr><th scope="col">peak learning rate</th>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n'
        "</table></div>"
    )


def facts(question: Question, results: Results) -> str:
    """The question in words."""
    m = question.machines
    described = m.fleet().describe()
    machines = f"{described['machines']}, from {described['slowest']:,.0f} to {described['fastest']:,.0f} samples/s"
    troubles = [
        f"away {percent(m.churn, 0)} of the time, after {m.session:g} s on average, {percent(m.crash, 0)} of the times "
        "without a word"
        if m.churn
        else "",
        f"hidden {percent(m.hidden, 0)} of the time, then {m.slowdown:g} times slower" if m.hidden else "",
        f"{percent(m.lost)} of answers lost" if m.lost else "",
        f"{percent(m.duplicated)} of answers twice" if m.duplicated else "",
        f"as in {m.trace}" if m.trace else "",
    ]
    cut = f"{question.shards} shards" if question.shards else "each method's own number of shards"
    skew = "even" if question.skew is None else f"skew {question.skew:g}"
    pairs = {
        "model and data": question.experiment or f"{question.model}, {question.data}, {question.loss}",
        "target": f"{100 * question.target:.6g} % test accuracy",
        "budget": f"{passes(question.epochs)} over the training data, evaluated every {question.evaluate_every:g}",
        "machines": machines,
        "throughput": f"{results.capacity.total:,.0f} samples/s together, {results.capacity.ideal:.2f} times the best",
        "network": bandwidth(m.bandwidth) + (f", {1000 * m.latency:g} ms" if m.latency else ""),
        "absence": "; ".join(filter(None, troubles)) or "none",
        "data split": f"{cut}, {skew}",
        "seeds": ", ".join(map(str, question.seeds)),
        "trainpool": f"{question.version}, question {question.hash}",
    }
    items = "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs.items())
    return f"<dl>\n{items}\n</dl>"


def command(question: Question) -> str:
    """The command that asks the question again."""
    m, plain = question.machines, Question(methods=question.methods)
    words = ["trainpool", "compare", *([question.experiment] if question.experiment else [])]

    def option(name: str, value: object, default: object = None) -> None:
        if value != default:
            words.extend([f"--{name}", str(value)])

    if not question.experiment:
        option("data", question.data)
        option("model", question.model)
        option("loss", question.loss, plain.loss)
        option("norm", question.norm)
    option("strategies", ",".join(method.label for method in question.methods))
    for name in MACHINES:
        option(name, getattr(m, name), getattr(plain.machines, name))
    option("fleet-seed", m.seed, 0)
    if m.bandwidth:
        option("bandwidth", ":".join(f"{part / 1e6:g}" for part in m.bandwidth))
    option("target", f"{question.target:g}")
    option("epochs", f"{question.epochs:g}")
    option("rates", ",".join(f"{rate:g}" for rate in question.rates))
    several = ",".join(map(str, question.seeds)) + ("," if len(question.seeds) == 1 else "")  # a comma: not how many
    option("seeds", len(question.seeds) if question.seeds == tuple(range(len(question.seeds))) else several)
    option("batch-size", question.recipe.batch_size, plain.recipe.batch_size)
    for name in question.recipe.__struct_fields__:
        value = getattr(question.recipe, name)
        if name not in ("learning_rate", "batch_size", "betas") and value != getattr(plain.recipe, name):
            words.extend(["--recipe", f"{name}={value}"])
    option("shards", question.shards, 0)
    option("skew", question.skew)
    option("evaluate-every", question.evaluate_every, plain.evaluate_every)
    option("recalibrate", question.recalibrate, 0)
    option("task-seconds", question.task_seconds)
    option("max-staleness", question.max_staleness)
    return shlex.join([*words, "--out", "runs/compare"])


def meanings() -> str:
    """Every column's definition."""
    items = "\n".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd>" for c in COLUMNS)
    return f"<dl>\n{items}\n</dl>"


def honesty() -> str:
    """What was measured, what was assumed."""
    points = (
        "Every training is real: the same coordinator and the same kernels as in a deployed run. Only the clock is "
        "simulated: computing takes samples over the machine's speed, a transfer latency plus bytes over bandwidth.",
        "The coordinator's own line and processor are assumed to be no limit, and evaluations to take no time.",
        "Every method meets the same machines, departures and first parameters for the same seed, and passes over the "
        "same samples equally often. Methods cut the data into as many shards as suit them, unless told otherwise.",
        "The learning rate falls along the recipe's schedule over the budget. A method that needs less time per pass "
        "is thus also further along its schedule at the same time: the target is reached within this budget, not by "
        "the shortest schedule that could reach it.",
    )
    return "<ul>\n" + "\n".join(f"<li>{escape(point)}</li>" for point in points) + "\n</ul>"
