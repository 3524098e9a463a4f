"""Comparisons: what is asked, which trials follow, what survives an interruption, and what the numbers mean."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import trainpool as tp
from trainpool import compare as comparing
from trainpool.compare import RESULTS, TRIALS, compare, outcomes, rehearse
from trainpool.crew import perform
from trainpool.errors import ConfigError, RunError
from trainpool.kernels.torch import vector_of
from trainpool.machines import Machines
from trainpool.pools.fleet import Fleet, Machine
from trainpool.pools.usage import Span
from trainpool.question import Method, Question, differences, experiments
from trainpool.results import REFERENCE, Capacity, Results, Spread, best_rate
from trainpool.tables import COLUMNS, Units, headline, notes
from trainpool.trial import Bench, Outcome, Point, Timeline, Trial, Work

MACHINES = Machines(workers=4, spread=4.0, speed=400.0, bandwidth=(20e6, 100e6), latency=0.01)


def question(*methods: str, **options: Any) -> Question:
    """A small one."""
    parsed = tuple(Method.parse(method) for method in methods or ("parallel-sgd", "downpour"))
    defaults: dict[str, Any] = {
        "data": "digits",
        "model": "logistic",
        "target": 0.8,
        "machines": MACHINES,
        "epochs": 1.0,
        "seeds": (0, 1),
        "rates": (0.1, 0.3),
        "recipe": tp.Recipe(batch_size=8),
    }
    return Question(methods=parsed, **(defaults | options))


def outcome(
    trial: Trial, asked: str = "", *, reach: float | None = 10.0, accuracy: float | None = None, **changes: Any
) -> Outcome:
    """A hand-made one that has accuracy 0.8 after `reach` virtual seconds, and ends after 20."""
    accuracy = accuracy or (0.7 if reach is None else 0.9)
    curve = [Point(5.0, 500, 5_000, 2_000, 0.5, 1.0)]
    curve += [] if reach is None else [Point(reach, 1000, 10_000, 4_000, 0.8, 0.5)]
    curve += [Point(20.0, 2000, 20_000, 8_000, accuracy, 0.3)]
    fields: dict[str, Any] = {
        "trial": trial,
        "question": asked,
        "curve": tuple(curve),
        "seconds": 20.0,
        "samples": 2000,
        "updates": 100,
        "rejected": 0,
        "staleness": 1.5,
        "bytes_down": 20_000,
        "bytes_up": 8_000,
        "work": Work(computed=2500.0, computing=60.0, waiting=15.0, there=80.0),
        "timeline": Timeline(8.0, 12.0, ("w0",), (100.0,), ((Span(0, 8.0, 10.0, "compute"),),)),
    }
    return Outcome(**(fields | changes))


# What is asked


def test_a_question_is_the_same_after_its_file_and_whole_numbers_are_floats() -> None:
    asked = question("diloco:learning_rate=0.5", machines=Machines(workers=4, spread=4, speed=400))
    again = msgspec.json.decode(msgspec.json.encode(asked), type=Question)
    assert again.hash == asked.hash
    assert differences(asked, again) == {}
    assert (
        asked.hash
        == question(
            "diloco:learning_rate=0.5",
            machines=Machines(workers=4, spread=4.0, speed=400.0),
            recipe=tp.Recipe(batch_size=8, learning_rate=9),
        ).hash
    )
    assert asked.hash != question("diloco:learning_rate=0.6", machines=Machines(workers=4, spread=4, speed=400)).hash


def test_what_could_be_asked_only_later_counts_where_it_is_asked() -> None:
    plain = question().plain()
    assert not {"task_seconds", "max_staleness"} & plain.keys()
    assert not {"crash", "slowdown", "duplicated"} & plain["machines"].keys()
    asked = [question(), question(task_seconds=0.5), question(max_staleness=0)]
    asked += [question(machines=msgspec.structs.replace(MACHINES, **{n: 0.25})) for n in ("crash", "duplicated")]
    asked.append(question(machines=msgspec.structs.replace(MACHINES, slowdown=3.0)))
    assert len({one.hash for one in asked}) == 6
    assert differences(asked[0], asked[1]) == {"task_seconds": "task_seconds was not asked about"}
    paced = asked[1].options("downpour")["pace"], asked[2].options("downpour")["pace"]
    assert [(pace.target, pace.limit) for pace in paced] == [(0.5, None), (2.0, 0)]


def test_differences_are_named() -> None:
    found = differences(
        question(), question("downpour", target=0.7, machines=Machines(workers=5), recipe=tp.Recipe(momentum=0.9))
    )
    assert found["target"] == "target was 0.8 and is 0.7"
    assert found["machines.workers"] == "machines.workers was 4 and is 5"
    assert found["recipe.momentum"] == "recipe.momentum was 0.0 and is 0.9"
    assert found["methods.parallel-sgd"] == "parallel-sgd was asked about"
    assert set(differences(question(), question("parallel-sgd", "downpour", "admm"))) == {"methods.admm"}


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (("downpor",), {}, "did you mean 'downpour'"),
        (("admm:rho",), {}, "name:key=value"),
        (("admm:rho=x",), {}, "Expected `float`"),
        (("admm:roh=1",), {}, "did you mean 'rho'"),
        (("admm", "admm"), {}, "admm is named twice"),
        (("serial",), {}, "serial is named twice"),
        (("admm",), {"target": 88}, "between 0 and 1"),
        (("admm",), {"seeds": ()}, "at least one"),
        (("admm",), {"seeds": (1, 10**20)}, "seeds are below"),
        (("admm",), {"rates": (0.1, 0.1)}, "must be different"),
        (("admm",), {"rates": (0.0,)}, "positive"),
        (("admm",), {"epochs": 0}, "must be above 0"),
        (("admm",), {"epochs": float("nan")}, "epochs must be a finite number, not nan"),
        (("admm",), {"rates": (0.1, float("nan"))}, "rates must be a finite number"),
        (("admm",), {"machines": Machines(bandwidth=(1e6, float("inf")))}, "machines.bandwidth must be a finite"),
        (("admm:rho=inf",), {}, "rho: must be a finite number, not inf"),
        (("admm",), {"machines": Machines(churn=1.0)}, "churn is a part of the whole"),
        (("admm",), {"machines": Machines(workers=0)}, "at least one machine"),
    ],
)
def test_what_cannot_be_asked(methods: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        question(*methods, **options)


def test_every_method_meets_the_same_machines_and_the_same_start(cache: Path) -> None:
    asked = question(machines=Machines(workers=4, churn=0.3))
    fleets = [asked.fleet(Trial(label, 0.1, 1)) for label in ("parallel-sgd", "downpour")]
    assert fleets[0] == fleets[1]
    other = asked.fleet(Trial("downpour", 0.1, 2))
    assert other.machines == fleets[0].machines
    assert other.seed != fleets[0].seed  # departures differ from seed to seed
    cut = question(shards=8, skew=0.1)
    assert (cut.options("downpour")["shards"], cut.options("downpour")["skew"]) == (8, 0.1)
    assert (cut.options(REFERENCE)["shards"], cut.options(REFERENCE)["skew"]) == (0, None)
    alone = asked.fleet(Trial(REFERENCE, 0.1, 1))
    assert alone == Fleet((Machine(fleets[0].best),))
    make = experiments(asked, cache)
    assert make(0) is make(0)
    assert not np.array_equal(vector_of(make(0).model), vector_of(make(1).model))
    assert np.array_equal(vector_of(make(1).model), vector_of(experiments(asked, cache)(1).model))


# What the numbers mean


def results_of(methods: dict[str, list[float | None]], ideal: float = 5.0, **changes: Any) -> Results:
    """Results of methods with the given times to the target, one a seed."""
    groups = [
        [outcome(Trial(label, 0.1, seed), reach=reach, **changes) for seed, reach in enumerate(times)]
        for label, times in methods.items()
    ]
    return Results.of(groups, 0.8, 1.0, Capacity(ideal * 100, 100.0), 0)


def test_spreads_count_what_never_came() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([3, 1, None]) == Spread(3, 1, None)
    assert Spread.of([3, None, None]) == Spread(None, 3, None)
    assert Spread.of([None]) == Spread(None, None, None)
    assert Spread.of([3, None]) == Spread(None, 3, None)
    assert Spread.of([0.5, None, 0.7], absent=-np.inf) == Spread(0.5, None, 0.7)


def test_a_row_has_the_right_numbers() -> None:
    found = results_of({REFERENCE: [14.0, 16.0, 15.0], "slow": [12.0, 18.0, None], "fast": [5.5, 6.0, 10.0]})
    assert [row.method for row in found.rows] == ["fast", "slow"]
    fast, slow = found.rows
    assert found.reference.seconds == Spread(15.0, 14.0, 16.0)
    assert found.reference.speedup == Spread(1.0, 1.0, 1.0)
    assert fast.seconds == Spread(6.0, 5.5, 10.0)
    assert fast.speedup == Spread(14 / 5.5, 15 / 10, 16 / 6)  # seed by seed
    assert fast.share == pytest.approx(14 / 5.5 / 5)
    assert (slow.seeds, slow.reached) == (3, 2)
    assert slow.seconds == Spread(18.0, 12.0, None)
    assert slow.speedup == Spread(16 / 18, None, 14 / 12)
    assert fast.waste.median == pytest.approx(0.2)  # 2000 of 2500 computed samples were merged
    assert fast.utilisation.median == 0.75
    assert (fast.target_down.median, fast.target_up.median) == (10_000, 4_000)
    assert (fast.bytes_down.median, fast.bytes_up.median) == (20_000, 8_000)
    assert fast.accuracy == Spread(0.9, 0.9, 0.9)
    assert fast.staleness.median == 1.5
    assert fast.total_seconds.median == 20.0


def test_the_best_rate_is_the_soonest_then_the_most_accurate_then_the_lowest() -> None:
    def one(rate: float, reach: float | None, accuracy: float | None = None) -> Outcome:
        return outcome(Trial("m", rate, 0), reach=reach, accuracy=accuracy)

    assert best_rate([one(0.1, 9.0), one(0.2, 8.0), one(0.4, None)], 0.8) == 0.2
    assert best_rate([one(0.1, None, 0.6), one(0.2, None, 0.7)], 0.8) == 0.2
    assert best_rate([one(0.2, 8.0), one(0.1, 8.0)], 0.8) == 0.1
    failed = outcome(Trial("m", 0.9, 0), reach=None, failed="training stopped: nan", accuracy=0.1)
    assert best_rate([failed, one(0.2, None, 0.3)], 0.8) == 0.2
    soon = outcome(Trial("m", 0.9, 0), reach=5.5, failed="training stopped: nan")
    assert best_rate([soon, one(0.2, 6.0)], 0.8) == 0.2
    assert best_rate([soon, one(0.2, None)], 0.8) == 0.2
    assert best_rate([soon], 0.8) == 0.9


def cells(found: Results, method: str) -> dict[str, str]:
    """A method's row as text."""
    row = next(row for row in (*found.rows, found.reference) if row.method == method)
    return {column.title: column.cell(row, found, Units.of(found)) for column in COLUMNS}


def test_a_seed_that_never_arrives_has_a_speed_up_of_nothing() -> None:
    found = results_of({REFERENCE: [15.0, 15.0, 15.0], "most": [5.0, 6.0, None]})
    assert cells(found, "most")["time to target"] == "6 s (5–never, 2 of 3 seeds)"
    assert cells(found, "most")["speed-up"] == "2.50× (0.00–3.00)"


def test_a_seed_that_only_the_method_gets_through_has_an_endless_speed_up() -> None:
    found = results_of({REFERENCE: [15.0, None, 16.0], "most": [5.0, 6.0, 8.0]})
    assert found.rows[0].speedup == Spread(3.0, 2.0, None)
    assert cells(found, "most")["speed-up"] == "3.00× (2.00–∞)"
    assert cells(results_of({REFERENCE: [None], "only": [5.0]}), "only")["speed-up"] == "–"


def test_the_reference_is_evaluated_where_it_is_due(cache: Path) -> None:
    asked = question(evaluate_every=0.1, machines=Machines(workers=4, speed=40.0))
    experiment = experiments(asked, cache)(0)
    samples = len(experiment.sources()[0])
    threads = torch.get_num_threads()
    try:
        bench = Bench(asked.fleet(Trial(REFERENCE, 0.1, 0)), inline=0)
        done = perform(asked, Trial(REFERENCE, 0.1, 0), lambda seed: experiment, cache, bench=bench)
    finally:
        torch.set_num_threads(threads)
    seen = [point.samples for point in done.curve]
    late = [after - before - 0.1 * samples for before, after in itertools.pairwise([0, *seen[:-1]])]
    assert len(seen) == 10
    assert all(0 <= one <= 8 for one in late)  # within a step; a task of free length has 80 samples here


def test_the_table_says_what_was_never_reached() -> None:
    found = results_of({REFERENCE: [15.0, 15.0], "never": [None, None], "half": [5.0, None], "both": [5.0, 7.0]})
    assert cells(found, "both")["time to target"] == "6 s (5–7)"
    assert cells(found, "both")["speed-up"] == "2.57× (2.14–3.00)"
    assert cells(found, "both")["of ideal"] == "51 %"
    assert cells(found, "both")["to workers"] == "10 kB (of 20 kB)"
    assert cells(found, "half")["time to target"] == "never (5 s in 1 of 2 seeds)"
    assert cells(found, "never")["time to target"] == "never"
    assert cells(found, "never")["speed-up"] == "–"
    assert cells(found, REFERENCE)["back"] == "none"


@pytest.mark.parametrize(
    ("methods", "phrases"),
    [
        (
            {REFERENCE: [15.0], "a": [5.0], "b": [9.0]},
            ("a reached 80 % in 5 s, 3.0 times sooner than the best single machine; that is 60 % of", "10 kB", "4 kB"),
        ),
        ({REFERENCE: [15.0, 16], "a": [5.0, 7.0], "b": [6.5, 8.0]}, ("allows. Until", "back. b may be as fast")),
        ({REFERENCE: [6.2, 9.0], "a": [6.0, 7.0]}, ("back. The best single machine may be as fast: the ranges",)),
        ({REFERENCE: [5.0], "a": [9.0]}, ("No method was sooner", "80 % in 5 s; the nearest was a, in 9 s")),
        ({REFERENCE: [30.0, None, None], "a": [9.0] * 3}, ("the best single machine only did in 1 of 3 seeds within",)),
        (
            {REFERENCE: [30.0, None, None], "a": [33.0, 20.0, None]},
            ("a reached 80 % in 33 s; the best single machine only did in 1 of 3 seeds",),
        ),
        ({REFERENCE: [None], "a": [9.0]}, ("a reached 80 % in 9 s; the best single machine never did",)),
        (
            {REFERENCE: [5.0], "a": [None]},
            ("No method reached 80 % in most seeds within 1 pass over", "a came closest, with 70.0 %", "did, in 5 s"),
        ),
        ({REFERENCE: [15.0] * 3, "a": [5.0, 6.0, None]}, ("Only 2 of 3 seeds reached it",)),
    ],
)
def test_the_headline(methods: dict[str, list[float | None]], phrases: tuple[str, ...]) -> None:
    text = headline(results_of(methods))
    for phrase in phrases:
        assert phrase in text


# Which trials follow, and what survives


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """The trials that were run, none of them really."""
    run: list[Trial] = []

    def pretend(asked: Question, trial: Trial, make: object, cache: Path) -> Outcome:
        run.append(trial)
        away = abs(trial.rate - 0.25)
        reach = {"parallel-sgd": 12.0, "downpour": 8.0, REFERENCE: 15.0}[trial.method] * (1 + away)
        return outcome(trial, asked.hash, reach=reach + trial.seed / 10)

    monkeypatch.setattr(comparing, "perform", pretend)
    monkeypatch.setattr(comparing, "rehearse", lambda *arguments: ["data"])
    return run


def fake(seed: int) -> tp.Experiment:
    """What the fakes never look at."""
    raise AssertionError


def test_the_grid_has_one_seed_and_the_best_rate_has_all(performed: list[Trial], tmp_path: Path) -> None:
    asked, totals = question(seeds=(3, 4, 5), rates=(0.1, 0.3, 0.5)), []

    class Ear:
        def tell(self, news: object, done: int, total: int) -> None:
            totals.append(total)

    found = compare(asked, tmp_path / "c", make=fake, follower=Ear())
    assert len(performed) == 3 * 5
    assert set(totals) == {3 * 5}
    for label in asked.labels:
        mine = {(trial.rate, trial.seed) for trial in performed if trial.method == label}
        assert mine == {(0.1, 3), (0.3, 3), (0.5, 3), (0.3, 4), (0.3, 5)}  # 0.25 would be the soonest
    assert [row.rate for row in found.rows] == [0.3, 0.3]
    assert found.rows[0].method == "downpour"
    assert [point.rate for point in found.rows[0].grid] == [0.1, 0.3, 0.5]
    assert not found.rows[0].edge


def test_a_base_rate_that_is_missing_beside_extensions_is_trained(
    performed: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, hands = question(rates=(0.05, 0.1)), []

    @contextlib.contextmanager
    def nobody(question: Question, cache: Path, count: int, log: Path) -> Iterator[None]:
        hands.append(count)
        raise KeyboardInterrupt
        yield

    compare(asked, tmp_path / "c", make=fake)
    for label in asked.labels:
        (tmp_path / "c" / "trials" / f"{label}-lr0.1-seed0.json").unlink()
    monkeypatch.setattr(comparing, "crew", nobody)
    with pytest.raises(KeyboardInterrupt):
        compare(asked, tmp_path / "c", processes=8)
    assert hands == [len(asked.labels)]
    kept = outcomes(tmp_path / "c", asked)
    assert comparing.expected(asked, kept) == len(kept) + len(asked.labels)
    with pytest.raises(ConfigError, match="processes must be 0"):
        compare(asked, tmp_path / "c", processes=-1)


@pytest.mark.parametrize(
    ("asked", "tried", "best", "edge"),
    [
        ((0.05, 0.1), [0.05, 0.1, 0.2, 0.4], 0.2, False),
        ((0.01, 0.02), [0.01, 0.02, 0.04, 0.08], 0.08, True),  # twice at most
        ((0.8, 0.4), [0.1, 0.2, 0.4, 0.8], 0.2, False),
        ((0.5, 0.6, 4.0), [0.125, 0.25, 0.5, 0.6, 4.0], 0.25, False),
        ((0.1,), [0.1], 0.1, False),
    ],
)
def test_a_grid_grows_while_its_best_is_at_an_end(
    performed: list[Trial], tmp_path: Path, asked: tuple[float, ...], tried: list[float], best: float, edge: bool
) -> None:
    found = compare(question(rates=asked), tmp_path / "c", make=fake)
    for row in (*found.rows, found.reference):
        assert [point.rate for point in row.grid] == tried
        assert (row.rate, row.edge) == (best, edge)
        assert {trial.rate for trial in performed if trial.method == row.method and trial.seed == 1} == {best}
    said = " ".join(notes(found))
    assert ("At the edge of the grid" in said) == edge
    assert all(f"{rate:g}" in said for rate in tried)


def test_an_interrupted_comparison_goes_on_where_it_was(
    performed: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(question(), tmp_path / "whole", make=fake)
    everything = performed.copy()
    performs = comparing.perform

    def breaks(*arguments: Any) -> Outcome:
        if len(performed) == 4:
            raise KeyboardInterrupt
        return performs(*arguments)

    performed.clear()
    monkeypatch.setattr(comparing, "perform", breaks)
    with pytest.raises(KeyboardInterrupt):
        compare(question(), tmp_path / "broken", make=fake)
    assert len(list((tmp_path / "broken" / TRIALS).iterdir())) == 4
    assert not (tmp_path / "broken" / RESULTS).exists()
    monkeypatch.setattr(comparing, "perform", performs)
    assert compare(question(), tmp_path / "broken", make=fake) == whole
    assert sorted(performed, key=str) == sorted(everything, key=str)  # each once
    assert (tmp_path / "broken" / RESULTS).read_bytes() == (tmp_path / "whole" / RESULTS).read_bytes()
    performed.clear()
    assert compare(question(), tmp_path / "broken", make=fake) == whole
    assert performed == []


def test_a_folder_answers_one_question(performed: list[Trial], tmp_path: Path) -> None:
    compare(question(), tmp_path / "c", make=fake)
    with pytest.raises(RunError, match=r"answers another question: target was 0\.8 and is 0\.85"):
        compare(question(target=0.85), tmp_path / "c", make=fake)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds no comparison"):
        compare(question(), tmp_path / "other", make=fake)
    path = next((tmp_path / "c" / TRIALS).iterdir())
    path.write_text("{")
    with pytest.raises(RunError, match="is damaged, remove it"):
        compare(question(), tmp_path / "c", make=fake)
    path.write_bytes(msgspec.json.encode(outcome(Trial("downpour", 0.1, 0), "another")))
    with pytest.raises(RunError, match="answers another question than"):
        outcomes(tmp_path / "c", question())


def test_other_data_are_not_mixed_in(
    performed: list[Trial], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "rehearse", rehearse)
    y = np.arange(64) % 2

    def make(pixel: int, test_pixel: int = 0) -> Callable[[int], tp.Experiment]:
        x = np.zeros((64, 4), np.float32)
        x[0, 0], test = pixel, x[:8].copy()
        test[1, 0] = test_pixel
        return lambda seed: tp.Experiment(nn.Linear(4, 2), (x, y), (test, y[:8]))

    out = tmp_path / "c"
    compare(question(), out, make=make(1), cache=cache)
    next((out / TRIALS).iterdir()).unlink()
    for other in (make(2), make(1, 1)):
        with pytest.raises(RunError, match="the data have changed since the comparison began"):
            compare(question(), out, make=other, cache=cache)
    compare(question(), out, make=make(1), cache=cache)
    assert len(list((out / TRIALS).iterdir())) == len(performed) - 1


def test_a_module_that_an_experiment_imports_is_code_too(
    performed: list[Trial], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "rehearse", rehearse)
    helper = tmp_path / "helper_of_a_comparison.py"
    helper.write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(4, 2)\n")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nimport trainpool as tp\nfrom helper_of_a_comparison import net\n"
        "data = np.zeros((64, 4), np.float32), np.arange(64) % 2\nexperiment = tp.Experiment(net(), data, data)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked, out = question(experiment=f"{tmp_path / 'mine.py'}:experiment"), tmp_path / "c"
    make = experiments(asked, cache)
    compare(asked, out, make=make, cache=cache)
    next((out / TRIALS).iterdir()).unlink()
    helper.write_text(helper.read_text() + "# changed\n")
    with pytest.raises(RunError, match=r"helper_of_a_comparison\.py has changed since the comparison began"):
        compare(asked, out, make=make, cache=cache)


def test_a_regression_is_refused_before_anything_is_trained(cache: Path, tmp_path: Path) -> None:
    data = np.zeros((64, 4), np.float32), np.zeros((64, 1), np.float32)
    with pytest.raises(ConfigError, match="this experiment's targets are not labels"):
        compare(
            question(),
            tmp_path / "c",
            make=lambda _: tp.Experiment(nn.Linear(4, 1), data, data, loss="mse"),
            cache=cache,
        )
    assert not (tmp_path / "c").exists()


def test_budgets_that_differ_are_said() -> None:
    def said(samples: int) -> str:
        rows = [[outcome(Trial(name, 0.1, 0), samples=count)] for name, count in ((REFERENCE, 2000), ("a", samples))]
        return " ".join(notes(Results.of(rows, 0.8, 1.0, Capacity(5.0, 1.0), 0)))

    assert "Budgets differ" not in said(2090)
    assert "since each shard takes whole batches, one at least: a 1.06 times the reference's samples" in said(2120)
    assert "a 0.5 times the reference's samples" in said(1000)


def test_other_code_is_not_mixed_in(performed: list[Trial], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"begun with trainpool 0\.0\.1"):
        compare(question(version="0.0.1"), tmp_path / "a", make=fake)
    file = tmp_path / "mine.py"
    file.write_text("experiment = 1")
    asked = question(experiment=f"{file}:experiment")
    compare(asked, tmp_path / "b", make=fake)
    file.write_text("experiment = 2")
    compare(asked, tmp_path / "b", make=fake)  # finished: nothing is trained any more
    next((tmp_path / "b" / TRIALS).iterdir()).unlink()
    with pytest.raises(RunError, match=r"mine\.py:experiment has changed since"):
        compare(asked, tmp_path / "b", make=fake)
    trace = tmp_path / "trace.csv"
    trace.write_text("worker,time,event,value\na,0,join,100\nb,0,join,50\n")
    asked = question(machines=Machines(workers=0, spread=1.0, trace=str(trace)))
    assert asked.capacity == Capacity(150.0, 100.0)
    trace.write_text("worker,time,event,value\na,0,join,100\n")
    with pytest.raises(RunError, match=r"trace\.csv has changed since"):
        compare(asked, tmp_path / "d", make=fake)
