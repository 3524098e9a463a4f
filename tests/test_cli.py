"""The command line: what it prints, and what it says to bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainpool import strategies
from trainpool.auto import BOLD, GENTLE, LEAST, MOST
from trainpool.cli import app
from trainpool.drive import Drive
from trainpool.events import Accepted

RUNNER = CliRunner()


def invoke(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_help_teaches() -> None:
    code, output, _ = invoke("train", "--help")
    assert code == 0
    for word in ("--strategy", "--workers", "file.py:name", "Example:"):
        assert word in output


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_help_of_simulated_machines_teaches(command: str) -> None:
    code, output, _ = invoke(command, "--help")
    assert code == 0
    for word in ("--workers", "--spread", "--churn", "UP:DOWN", "--target", "file.py:name", "Example:", "machines"):
        assert word in output


def test_strategies_are_listed_with_citation_and_defaults() -> None:
    code, output, _ = invoke("strategies")
    assert code == 0
    for name, kind in strategies.discover().items():
        assert name in output
        assert strategies.citation(kind) in output
        for setting, (default, text) in strategies.settings(kind).items():
            assert text, f"{name}'s setting {setting} has no explanation"
            assert f"--set {setting}={default}" in output
    code, output, _ = invoke("strategies", "admm")
    assert "Residual balancing" in output
    code, output, _ = invoke("strategies", "auto")
    for words in ("Citation: ", "arXiv:2311.08105", "steps ", "momentum, learning_rate ", f"{LEAST} to {MOST}"):
        assert words in output
    assert f"at most {GENTLE}" in output
    assert f"at most {BOLD:g}" in output


def test_json_prints_the_summary_alone(cache: Path, tmp_path: Path) -> None:
    arguments = ("--data", "digits", "--model", "logistic", "--workers", 1, "--epochs", 2, "--cache", cache)
    code, output, errors = invoke("train", *arguments, "--out", tmp_path / "run", "--json", "--quiet")
    assert code == 0, errors
    summary = json.loads(output)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["samples"] == 2 * 1437 // 32 * 32 + 32 * (2 * 1437 % 32 > 16)
    assert summary["test_accuracy"] > 0.7


def test_a_folder_of_images_trains(cache: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    arguments = ("--data", tmp_path / "images", "--model", "cnn", "--workers", 1, "--epochs", 1, "--batch-size", 4)
    code, output, errors = invoke("train", *arguments, "--out", tmp_path / "run", "--cache", cache, "--quiet")
    assert code == 0, errors
    assert "not measured" in output
    (tmp_path / "images" / "cats" / "0.png").write_bytes(b"broken")
    code, _, errors = invoke("train", *arguments, "--out", tmp_path / "run2", "--cache", cache, "--quiet")
    assert code == 2
    assert "0.png is not a readable image" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--strategy", "downpor"), "did you mean 'downpour'?"),
        (("train", "--set", "rho=1"), "auto chooses the settings itself; to set rho, name the strategy"),
        (("train", "--strategy", "parallel-sgd", "--set", "rho=1"), "parallel-sgd has no setting 'rho'"),
        (("train", "--strategy", "admm", "--set", "rho=much"), "admm: rho: Expected `float`, got `str`"),
        (("train", "--strategy", "admm", "--set", "rho"), "--set takes name=value"),
        (("train", "--strategy", "admm", "--set", "rho=-1"), "admm: rho: Expected `float` > 0.0"),
        (("train", "--strategy", "admm", "--set", "l2=nan"), "admm: l2: Expected `float` >= 0.0"),
        (("train", "--strategy", "admm", "--set", "l2=inf"), "admm: l2: must be a finite number, not inf"),
        (("train", "--recipe", "optimizer=sgdd"), "Invalid enum value 'sgdd'"),
        (("train", "--recipe", "nesterov=true"), "nesterov needs a momentum above 0"),
        (("train", "--lr", "-1"), "the recipe: Expected `float` > 0.0"),
        (("train", "--data", "fashion-mnits"), "did you mean 'fashion-mnist'?"),
        (("train", "--model", "cnm"), "did you mean 'cnn'?"),
        (("train", "--model", "cnn", "--norm", "batch"), "--norm is an option of resnet20 alone"),
        (("train", "--loss", "cross"), "loss"),
        (("train", "--epochs", "0"), "must be above 0"),
        (("train", "--epochs", "nan"), "epochs (nan) must be above 0"),
        (("train", "--epochs", "inf"), "no number of passes above 1e+09"),
        (("train", "--evaluate-every", "nan"), "evaluate_every (nan)"),
        (("train", "--lr", "inf"), "the recipe: learning_rate must be a finite number, not inf"),
        (("train", "--out", "/proc/nowhere/run"), "; make room, or choose another folder"),
        (("train", "--workers", "-1"), "must not be negative"),
        (("train", "nothing.py:experiment"), "no file 'nothing.py'"),
        (("train", "--shards", "5000"), "5000"),
        (("train", "--device", "cuda:99"), "no device 'cuda:99': PyTorch sees"),
        (("train", "--device", "gpu"), "no device 'gpu' here: Expected one of cpu"),
        (("resume", "nowhere"), "holds no run"),
        (("simulate", "--strategy", "downpor"), "did you mean 'downpour'?"),
        (("simulate", "--churn", "1"), "churn is a part of the whole"),
        (("simulate", "--workers", "0"), "at least one machine"),
        (("simulate", "--bandwidth", "20"), "--bandwidth takes UP:DOWN in Mbit/s"),
        (("simulate", "--bandwidth", "0:100"), "bandwidth must be above 0"),
        (("simulate", "--trace", "gone.csv"), "gone.csv cannot be read"),
        (("simulate", "--target", "88"), "between 0 and 1, such as 0.88"),
        (("simulate", "--model", "cnm"), "did you mean 'cnn'?"),
        (("simulate", "--timing", "--out", "a"), "--timing trains nothing: leave out --out"),
        (("simulate", "--timing", "--epochs", "0"), "must be above 0"),
        (("simulate", "--task-seconds", "0"), "must take more than 0 seconds"),
        (("simulate", "--max-staleness", "-1"), "staleness (-1) not negative"),
        (("train", "--task-seconds", "-2"), "must take more than 0 seconds"),
        (("compare", "--task-seconds", "0"), "must take more than 0 seconds"),
        (("compare", "--crash", "2"), "crash is the part of the departures"),
        (("simulate", "--epochs", "nan"), "--epochs must be a finite number, not nan"),
        (("simulate", "--skew", "nan"), "--skew must be a finite number"),
        (("simulate", "--latency", "inf"), "--latency must be a finite number, not inf"),
        (("compare", "--epochs", "nan"), "--epochs must be a finite number"),
        (("compare", "--rates", "nan"), "rates must be a finite number, not nan"),
        (("compare", "--rate", "inf"), "--rate must be a finite number"),
        (("compare", "--bandwidth", "inf:100"), "machines.bandwidth must be a finite number"),
        (("compare", "--strategies", "downpour:learning_rate=nan"), "downpour: learning_rate: "),
        (("compare", "--strategies", "admm:rho"), "name:key=value"),
        (("compare", "--strategies", "downpor"), "did you mean 'downpour'?"),
        (("compare", "--strategies", "serial"), "at least one strategy beside serial"),
        (("compare", "--strategies", "admm,admm"), "admm is named twice"),
        (("compare", "--target", "88"), "between 0 and 1, such as 0.88"),
        (("compare", "--spread", "0.5"), "spread is the fastest machine's speed"),
        (("compare", "--seeds", "some"), "--seeds takes numbers with commas"),
        (("compare", "--seeds", "99999999999999999999"), "is how many; one seed of that number is --seeds 9999"),
        (("compare", "--rates", "0.1,x"), "--rates takes numbers with commas"),
        (("compare", "--rate", "0.1", "--rates", "0.1,0.2"), "give --rate for one"),
        (("compare", "--rate", "-1"), "must be different and positive"),
        (("compare", "--model", "cnm", "--strategies", "admm"), "did you mean 'cnn'?"),
        (("strategies", "adm"), "did you mean 'admm'?"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] in ("train", "simulate", "compare"):
        data = () if "--data" in arguments else ("--data", "digits")
        arguments = (*arguments, *data, "--cache", str(cache), "--quiet")
    code, output, errors = invoke(*arguments)
    assert code == 2, errors
    assert output == ""
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_simulated_machines_leave_the_files_of_a_run_and_a_picture(cache: Path, tmp_path: Path) -> None:
    machines = ("--workers", 3, "--spread", 3, "--speed", 400, "--bandwidth", "20:100", "--churn", 0.1, "--target", 0.5)
    arguments = ("--data", "digits", "--model", "logistic", "--strategy", "downpour", "--epochs", 1, "--processes", 1)
    place = ("--cache", cache, "--out", tmp_path / "run")
    code, output, errors = invoke("simulate", *arguments, *machines, *place, "--quiet")
    assert code == 0, errors
    for words in ("50 % after", "times the fastest machine's speed", "computing", "wasted", "20 Mbit/s up"):
        assert words in output
    found = json.loads((tmp_path / "run" / "simulation.json").read_text())
    assert found.items() >= json.loads((tmp_path / "run" / "summary.json").read_text()).items()
    assert found["utilisation"] + found["waiting"] + found["transferring"] == pytest.approx(1, abs=1e-3)
    assert found["samples_per_second"] == pytest.approx(found["throughput_speedup"] * 400, rel=1e-3)
    assert (tmp_path / "run" / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "model.safetensors").exists()
    code, _, errors = invoke("simulate", *arguments, *machines, *place)
    assert code == 2
    assert "exists" in errors


def test_a_comparison_is_printed_again_from_its_folder(cache: Path, tmp_path: Path) -> None:
    size = ("--data", "digits", "--model", "logistic", "--strategies", "downpour", "--workers", 2, "--epochs", 0.2)
    arguments = (*size, "--rate", 0.1, "--seeds", 1, "--target", 0.3, "--processes", 1, "--cache", cache)
    code, output, errors = invoke("compare", *arguments, "--out", tmp_path / "c", "--json", "--quiet")
    assert code == 0, errors
    assert json.loads(output) == json.loads((tmp_path / "c" / "results.json").read_text())
    assert errors == ""
    code, output, errors = invoke("compare", "--out", tmp_path / "c")
    assert code == 0, errors
    assert "time to" in output
    assert "30 %" in output
    assert "it was not tuned" in output
    assert "report.html" in output
    for change, message in (
        (("--target", 0.4), "target was 0.3 and is 0.4"),
        (("--workers", 3), "machines.workers was 2 and is 3"),
        (("--strategies", "admm"), "downpour was asked about; admm was not asked about"),
        (("--rates", "0.1,0.2"), "rates was 0.1 and is 0.1,0.2"),
    ):
        code, output, errors = invoke("compare", "--out", tmp_path / "c", *change)
        assert code == 2
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    code, _, errors = invoke("compare", "--out", tmp_path / "run")
    assert code == 2
    assert "holds a run: choose another folder" in errors


def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    code, _, errors = invoke("resume", tmp_path)
    assert code == 2
    assert "config.json' (--debug shows where)" in errors
    assert len(errors.strip().splitlines()) == 1


def test_tensorboard_is_asked_for_before_anything_is_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    arguments = ("--data", "digits", "--tensorboard", "--cache", cache, "--out", tmp_path / "run", "--quiet")
    code, _, errors = invoke("train", *arguments)
    assert code == 2
    assert "pip install 'trainpool[tensorboard]'" in errors
    assert not (tmp_path / "run").exists()


def test_an_experiment_of_the_wrong_kind_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine.py").write_text("experiment = 5\n")
    code, _, errors = invoke("train", f"{tmp_path / 'mine.py'}:experiment", "--cache", cache)
    assert code == 2
    assert "has no trainpool.Experiment named 'experiment'" in errors


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("experiment = 5\n", "", "mine.py needs the name of the experiment in it: "),
        ("import trainpool\nexperiment = (\n", ":experiment", "mine.py, line 2: '(' was never closed"),
        ("def experiment():\nreturn 5\n", ":experiment", "mine.py, line 2: expected an indented block"),
    ],
)
def test_an_experiment_that_cannot_be_loaded_gets_one_line(text: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    code, _, errors = invoke("train", f"{tmp_path / 'mine.py'}{name}")
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_debug_shows_the_traceback(cache: Path) -> None:
    result = RUNNER.invoke(app, ["train", "--strategy", "nonsense", "--debug"])
    assert type(result.exception).__name__ == "ConfigError"


def test_the_users_files_are_not_taken_for_the_standard_librarys(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "struct.py").write_text("raise RuntimeError('a file of the user')")
    options = ("--data", "digits", "--model", "logistic", "--workers", "1", "--epochs", "0.2", "--cache", str(cache))
    code, _, errors = invoke("train", *options, "--out", "run", "--quiet")
    assert code == 0, errors


def test_timing_trains_nothing_and_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    machines = ("--workers", 50, "--spread", 4, "--speed", 400, "--bandwidth", "20:100", "--churn", 0.2, "--session", 9)
    faults = ("--crash", 1, "--hidden", 0.1, "--slowdown", 5, "--lost", 0.01, "--duplicated", 0.02)
    asked = ("--data", "digits", "--model", "logistic", "--strategy", "downpour", "--batch-size", 2, "--cache", cache)
    code, output, errors = invoke("simulate", "--timing", *asked, *machines, *faults)
    assert code == 0, errors
    for words in ("downpour", "finished", "computing", "wasted", "refused", "to workers", "events"):
        assert words in output
    code, output, errors = invoke("simulate", "--timing", "--json", *asked, *machines, *faults)
    assert code == 0, errors
    found = json.loads(output)
    assert found["merged"] == pytest.approx(3 * 1437, rel=0.1)  # whole batches of each of 200 shards
    assert {name: found["machines"][name] for name in ("crash", "slowdown", "duplicated")} == {
        "crash": 1.0,
        "slowdown": 5.0,
        "duplicated": 0.02,
    }
    assert not list(tmp_path.iterdir())


def test_a_simulation_that_was_stopped_says_what_is_kept_and_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(self: Drive, command: Accepted) -> None:
        carry_out(self, command)
        if self.coordinator.memory.updates == 3:
            self.interrupted = True  # as the first Ctrl+C does

    carry_out = Drive.carry_out
    monkeypatch.setattr(Drive, "carry_out", stops)
    asked = ("--data", "digits", "--model", "logistic", "--workers", 2, "--processes", 1, "--cache", cache, "--quiet")
    code, output, errors = invoke("simulate", *asked, "--out", tmp_path / "run")
    assert (code, output) == (130, "")
    assert errors.startswith(f"Stopped; {tmp_path / 'run'} keeps the metrics so far. A simulation cannot be continued")
    assert len(errors.strip().splitlines()) == 1
    assert (tmp_path / "run" / "summary.json").exists()
    code, _, errors = invoke("simulate", *asked, "--out", tmp_path / "run")
    assert code == 2
    assert "a simulation cannot be continued; choose another folder, or remove it" in errors
    assert "resume" not in errors
