"""The report: a page that is well-formed, needs nothing from elsewhere, and says what the numbers say."""

import re
import runpy
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import trainpool as tp
from test_compare import MACHINES, outcome, question
from trainpool import compare as comparing
from trainpool import strategies
from trainpool.cli import app
from trainpool.machines import Machines
from trainpool.question import Method, Question
from trainpool.report import command, report
from trainpool.report_plots import INK, against_time, svg, timelines
from trainpool.results import REFERENCE, Results
from trainpool.screen import Screen, results_table
from trainpool.tables import notes
from trainpool.trial import Outcome, Trial

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what a reader gets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def answered(asked: Question, reach: dict[str, list[float | None]]) -> tuple[Results, dict[Trial, Outcome]]:
    """Hand-made outcomes for a question, and their results: a time to the target for each method and seed."""
    done = {}
    for label in asked.labels:
        for rate in asked.rates:
            for seed, seconds in zip(asked.seeds, reach[label], strict=True):
                if seed == asked.seeds[0] or rate == asked.rates[0]:
                    late = None if seconds is None else seconds + 10 * (rate - asked.rates[0])
                    done[Trial(label, rate, seed)] = outcome(Trial(label, rate, seed), asked.hash, reach=late)
    return comparing.results(asked, done), done


def page(asked: Question | None = None, reach: dict[str, list[float | None]] | None = None) -> tuple[str, Page]:
    """A report and what its parser found."""
    asked = asked or question()
    reach = reach or {REFERENCE: [15.0, 16.0], "parallel-sgd": [12.0, None], "downpour": [5.0, 6.0]}
    text = report(asked, *answered(asked, reach))
    return text, Page(text)


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    text, found = page()
    assert text.startswith("<!DOCTYPE html>")
    assert "http:" not in text
    assert "https:" not in text
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "img", "base"}
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), f"{tag} {attributes}"
    assert "url(" not in re.sub(r"url\(#", "", text)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {name[1:] for _, a in found.tags if (name := a.get("href") or "")} | set(
        re.findall(r"url\(#(.*?)\)", text)
    )
    assert targets <= set(ids)


def test_it_can_be_read_by_everyone() -> None:
    text, found = page()
    assert ("html", {"lang": "en"}) in found.tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in found.tags)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    for tag, attributes in found.tags:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "svg":
            assert attributes.get("role") == "img"
            assert len(attributes.get("aria-label") or "") > 30
    assert sum(tag == "svg" for tag, _ in found.tags) == 4
    assert INK not in text
    assert "currentColor" in text


def test_it_says_what_the_numbers_say() -> None:
    _, found = page()
    words = " ".join(" ".join(found.text).split())  # which also splits at spaces that do not break
    assert "downpour reached 80 % in 5.5 s, 2.8 times sooner than the best single machine" in words
    assert "never" in words
    assert "1 of 2 seeds" in words
    assert "chosen from 0.1, 0.3" in words
    assert "trainpool compare --data digits --model logistic --strategies parallel-sgd,downpour" in words
    assert "20 Mbit/s up, 100 Mbit/s down, 10 ms" in words
    for term in ("speed-up", "of ideal", "wasted", "staleness"):
        assert words.count(term) >= 2  # in the table, and with its definition


def test_one_rate_is_said_to_be_not_tuned_and_failures_are_named() -> None:
    asked = question("downpour", rates=(0.1,), seeds=(0,))
    done = {trial: outcome(trial, asked.hash) for trial in (Trial(REFERENCE, 0.1, 0), Trial("downpour", 0.1, 0))}
    done[Trial("downpour", 0.1, 0)] = outcome(
        Trial("downpour", 0.1, 0), asked.hash, reach=None, failed="the loss is nan"
    )
    text = report(asked, comparing.results(asked, done), done)
    Page(text)
    assert "it was not tuned" in text
    assert "downpour: the loss is nan" in text


def test_nobody_at_the_target_and_an_empty_curve_still_make_a_page() -> None:
    asked = question("downpour", rates=(0.1,), seeds=(0,))
    done = {
        trial: outcome(trial, asked.hash, curve=(), failed="no data")
        for trial in (Trial(REFERENCE, 0.1, 0), Trial("downpour", 0.1, 0))
    }
    text = report(asked, comparing.results(asked, done), done)
    Page(text)
    assert "No method reached 80\u00a0%" in text


def test_names_are_escaped() -> None:
    evil = '<script>alert("x")</script>&'
    asked = question(experiment=f"/tmp/{evil}.py:e")
    text, found = page(asked)
    assert "<script" not in text
    assert not any(tag == "script" for tag, _ in found.tags)
    made = Method.parse("downpour")
    renamed = Question(methods=(Method(evil, made.strategy, made.settings),), data="digits", target=0.8, seeds=(0,))
    text, found = page(renamed, {REFERENCE: [15.0], evil: [5.0]})
    assert "<script" not in text
    assert evil in "".join(found.text)


def test_the_same_numbers_give_the_same_page() -> None:
    assert page()[0] == page()[0]


def test_many_methods_have_looks_of_their_own() -> None:
    names = [f"downpour:steps={n}" for n in range(1, 9)]
    asked = question(*names, rates=(0.1,), seeds=(0,))
    results, done = answered(asked, {label: [10.0] for label in asked.labels})
    taken = {label: [done[Trial(label, 0.1, 0)]] for label in asked.labels}
    (axes,) = against_time(results, taken).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == len(asked.labels) + 1  # and the target


def test_time_without_a_task_is_drawn_as_waiting() -> None:
    line = outcome(Trial("a", 0.1, 0)).timeline
    figure = timelines({"a": line}, 4.0)
    bars = [collection.get_paths()[0].get_extents() for collection in figure.axes[0].collections]
    assert (bars[0].x0, bars[0].x1) == (0, 4)  # waiting lies below all else
    assert (bars[1].x0, bars[1].x1) == (0, 2)  # computing, from the span of 8 to 10 s
    assert 'aria-label="1 &lt; 2 &quot;"' in svg(figure, "x", '1 < 2 "')


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_on_a_terminal(width: int) -> None:
    asked = question()
    results, _ = answered(asked, {REFERENCE: [15.0, 16.0], "parallel-sgd": [12.0, None], "downpour": [5.0, 6.0]})
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(results_table(results, width))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    for words in ("80 %", "5.5 s", "5–6", "2.83×", "never", "of 20 kB", "parallel-sgd"):
        assert words in text
    assert ("staleness" in text) == (width == 140)


def test_how_finely_times_are_known_and_a_single_seed_are_said() -> None:
    asked = question("downpour", rates=(0.1,), seeds=(0,))
    results, _ = answered(asked, {REFERENCE: [15.0], "downpour": [6.0]})
    said = " ".join(notes(results))
    assert "There is one seed" in said
    assert "time between evaluations: downpour 1 s, serial 10 s." in said  # at 5 s was the one before
    assert "A smaller --evaluate-every" in said  # two thirds of 15 s
    assert "smaller" not in " ".join(notes(answered(asked, {REFERENCE: [5.5], "downpour": [6.0]})[0]))


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("downpour", 0.1, 0)
    with Screen() as screen:
        screen.tell(trial, 1, 3)
        screen.tell(outcome(trial), 2, 3)
    said = capsys.readouterr().err
    assert "2 of 3  downpour, rate 0.1, seed 0: 90.00 % at the end, 20 virtual s" in said
    with Screen(quiet=True) as screen:
        screen.tell(outcome(trial), 1, 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"machines": Machines(workers=5, churn=0.25, session=9.0, hidden=0.1, lost=0.02, seed=4), "seeds": (0, 1, 2)},
        {"machines": Machines(crash=0.1, slowdown=4.0, duplicated=0.2), "task_seconds": 0.5, "max_staleness": 7},
        {"recipe": tp.Recipe(momentum=0.9, nesterov=True, batch_size=64), "skew": 0.5, "shards": 8, "recalibrate": 2},
        {"model": "resnet20", "norm": "batch", "seeds": (7,), "rates": (0.1,), "evaluate_every": 0.25},
    ],
)
def test_the_command_asks_the_same_question_again(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question("parallel-sgd", "admm:rho=0.02", **({"machines": MACHINES} | options))
    heard: list[Question] = []

    def hear(question: Question, out: Path, **rest: object) -> Results:
        heard.append(question)
        raise tp.ConfigError("enough")

    monkeypatch.setattr(comparing, "compare", hear)
    CliRunner().invoke(app, shlex.split(command(asked))[1:])
    assert [again.hash for again in heard] == [asked.hash]


def test_every_comparison_of_the_benchmarks_can_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matrix = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "matrix.py"))
    heard: list[Question] = []

    def hear(question: Question, out: Path, **rest: object) -> Results:
        heard.append(question)
        raise tp.ConfigError("enough")

    monkeypatch.setattr(comparing, "compare", hear)
    monkeypatch.chdir(tmp_path)
    for name in matrix["CASES"]:
        CliRunner().invoke(app, matrix["command"](name)[1:])
    assert len({asked.hash for asked in heard}) == len(matrix["CASES"])
    assert matrix["TITLES"].keys() == matrix["CASES"].keys()
    tried = {method.strategy for asked in heard for method in asked.methods}
    assert tried == {"auto", *strategies.discover()} - {REFERENCE, "diloco"}  # auto takes diloco
