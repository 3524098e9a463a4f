"""Comparisons that are really trained: processes, bytes, interruptions, and what the machines did meanwhile."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainpool as tp
from conftest import small_data
from test_compare import MACHINES, cells
from test_compare import question as asked_of
from trainpool.compare import RESULTS, TRIALS, compare, outcomes, read_question
from trainpool.crew import Crew, News, perform
from trainpool.errors import ConfigError, RunError
from trainpool.kernels.torch import vector_of
from trainpool.pools.fleet import Fleet, Machine
from trainpool.pools.simulated import SimulatedPool
from trainpool.pools.usage import Span
from trainpool.question import Question
from trainpool.results import REFERENCE, Capacity, Results
from trainpool.trial import Bench, Outcome, Timeline, Trial


def question(*methods: str, **options: Any) -> Question:
    """A small one, with one learning rate: a grid would take longer and be extended."""
    return asked_of(*methods, **({"rates": (0.3,)} | options))


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was really made."""
    place = tmp_path_factory.mktemp("compare") / "c"
    heard: list[object] = []

    class Ear:
        def tell(self, news: Trial | News | Outcome, done: int, total: int) -> None:
            heard.append(news)

    compare(question(), place, cache=cache, follower=Ear(), processes=2)
    ended = [news for news in heard if isinstance(news, Outcome)]
    assert len(ended) == 3 * 2
    assert {news.trial for news in ended} == {news for news in heard if isinstance(news, Trial)}
    assert any(isinstance(news, News) and news.accuracy is not None for news in heard)
    return place


def test_real_trials_have_one_budget_and_the_reference_its_machine_for_itself(folder: Path) -> None:
    done = outcomes(folder, question())
    budgets = {one.samples for one in done.values()}
    assert max(budgets) - min(budgets) <= 0.03 * max(budgets)  # whole batches of a shard
    for trial, one in done.items():
        assert one.curve[-1].samples == one.samples
        assert one.curve[-1].bytes_down == one.bytes_down > 0
        assert 0.5 < one.accuracy <= 1
        assert one.work.computed >= one.samples
        if trial.method == REFERENCE:
            assert one.work.utilisation == pytest.approx(1.0)
            assert one.seconds == pytest.approx(one.samples / 400)
        else:
            assert 0 < one.work.utilisation < 1
            assert len(one.timeline.names) == 4
            assert one.timeline.speeds == tuple(sorted(one.timeline.speeds, reverse=True))
    starts = {(t.seed, one.curve[0].loss) for t, one in done.items() if t.method == "parallel-sgd" and t.rate == 0.3}
    assert len(starts) == 2


def test_the_same_question_gives_the_same_bytes_in_any_number_of_processes(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    compare(question(), tmp_path / "c", cache=cache, processes=1)
    assert (tmp_path / "c" / RESULTS).read_bytes() == (folder / RESULTS).read_bytes()
    assert (tmp_path / "c" / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    document = json.loads((folder / RESULTS).read_text())
    assert document["ideal_speedup"] == pytest.approx(question().capacity.ideal)
    assert len(document["trials"]) == 3 * 2


def test_a_trial_leaves_the_experiment_as_it_is(experiment: tp.Experiment, cache: Path) -> None:
    before = vector_of(experiment.model).copy()
    threads = torch.get_num_threads()
    seen: list[tuple[float, int, float | None]] = []
    try:
        bench = Bench(MACHINES.fleet(), inline=0, watch=lambda *news: seen.append(news))
        asked = question("parallel-sgd")
        done = perform(asked, Trial("parallel-sgd", 0.1, 0), lambda seed: experiment, cache, bench=bench)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(before, vector_of(experiment.model))
    assert done.samples == 384  # 12 batches of 8 from each of 4 shards
    assert seen[-1][2] == done.accuracy
    assert max(samples for _, samples, _ in seen) == 384


def test_a_trial_that_diverges_is_an_outcome(cache: Path) -> None:
    broken = tp.Experiment(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)),
        small_data(64),
        small_data(64, 1),
        loss=lambda out, target: out.sum() * float("nan"),
    )
    threads = torch.get_num_threads()
    try:
        bench = Bench(MACHINES.fleet(), inline=0)
        asked = question("parallel-sgd")
        done = perform(asked, Trial("parallel-sgd", 0.1, 0), lambda seed: broken, cache, bench=bench)
    finally:
        torch.set_num_threads(threads)
    assert "the loss is nan" in done.failed
    assert done.accuracy is None
    found = Results.of([[done], [done]], 0.8, 1.0, Capacity(2.0, 1.0), 0)
    assert cells(found, "parallel-sgd")["accuracy"] == "failed"
    assert found.rows[0].failures == (done.failed,)


def test_what_cannot_be_compared_is_said_before_anything_is_trained(cache: Path, tmp_path: Path) -> None:
    def lacking(seed: int) -> tp.Experiment:
        raise ConfigError("methods are compared by test accuracy, but there are no test data")

    with pytest.raises(ConfigError, match="no test data"):
        compare(question(), tmp_path / "c", make=lacking, cache=cache)
    with pytest.raises(tp.TrainpoolError, match="digits"):
        compare(question(data="digitz"), tmp_path / "c", cache=cache)
    with pytest.raises(ConfigError, match="rounds"):
        compare(question("parallel-sgd:rounds=-5"), tmp_path / "c", cache=cache)
    assert not (tmp_path / "c").exists()


def exhaust(crew: Crew) -> None:
    """Listen to a crew for ever."""
    while True:
        list(crew.poll(60))


def test_a_process_that_dies_is_reported_with_its_log(cache: Path, tmp_path: Path) -> None:
    crew = Crew(question(), cache, 1, tmp_path / "log")
    try:
        crew.start(Trial("downpour", 0.1, 0))
        crew.children[0].kill()
        with pytest.raises(RunError, match=r"died.*log"):
            exhaust(crew)
    finally:
        crew.close()


def test_an_error_in_the_users_file_is_one_line(cache: Path, tmp_path: Path) -> None:
    crew = Crew(question(experiment=f"{tmp_path / 'gone.py'}:e"), cache, 1, tmp_path / "log")
    try:
        crew.start(Trial("downpour", 0.1, 0))
        with pytest.raises(ConfigError, match="no file"):
            exhaust(crew)
    finally:
        crew.close()


def test_ctrl_c_keeps_what_is_finished(cache: Path, tmp_path: Path) -> None:
    arguments = [
        "--data",
        "digits",
        "--model",
        "logistic",
        "--strategies",
        "downpour",
        "--workers",
        "2",
        "--epochs",
        "1",
    ]
    # So many trials that a busy machine cannot be through before the signal is sent.
    arguments += ["--rates", "0.1,0.2", "--seeds", "200", "--target", "0.5", "--processes", "1", "--cache", str(cache)]
    command = [sys.executable, "-m", "trainpool.cli", "compare", *arguments, "--out", str(tmp_path / "c")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}) as child:
        assert child.stderr is not None
        assert "1 of 402" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert f"Continue with: trainpool compare --out {tmp_path / 'c'}" in rest
    kept = len(list((tmp_path / "c" / TRIALS).iterdir()))
    assert 1 <= kept < 402
    asked = read_question(tmp_path / "c")
    assert asked is not None
    assert len(outcomes(tmp_path / "c", asked)) == kept
    assert not list((tmp_path / "c").rglob("*.tmp"))


# What workers did


class Played(SimulatedPool):
    """A pool that has done what a test says."""

    def __init__(self, spans: list[Span], now: float) -> None:
        super().__init__(Fleet(tuple(Machine(speed) for speed in (100.0, 300.0, 200.0))))
        self.spans, self.time = spans, now


def test_a_timeline_shows_the_fastest_and_the_slowest_for_as_long_as_all_is_known() -> None:
    spans = [Span(worker, start, start + 1.0, "compute") for start in range(10) for worker in (0, 1, 2)]
    line = Timeline.of(Played(spans, 9.5), 2, 4, 2.5)
    assert line.names == ("w1", "w0")
    assert line.speeds == (300.0, 100.0)
    assert (line.start, line.end) == (2.5, 6.0)  # the fifth span of a worker begins at 6
    for part in line.spans:
        assert [(span.start, span.end) for span in part] == [(2.5, 3.0), (3.0, 4.0), (4.0, 5.0), (5.0, 6.0)]
