"""The command line: what it prints, and what it says to bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainpool import strategies
from trainpool.cli import app

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
        (("train", "--set", "rho=1"), "parallel-sgd has no setting 'rho'"),
        (("train", "--strategy", "admm", "--set", "rho=much"), "admm: Expected `float`, got `str` - at `$.rho`"),
        (("train", "--strategy", "admm", "--set", "rho"), "--set takes name=value"),
        (("train", "--strategy", "admm", "--set", "rho=-1"), "rho must be above 0"),
        (("train", "--recipe", "optimizer=sgdd"), "Invalid enum value 'sgdd'"),
        (("train", "--recipe", "nesterov=true"), "nesterov needs a momentum above 0"),
        (("train", "--lr", "-1"), "the recipe: Expected `float` > 0.0"),
        (("train", "--data", "fashion-mnits"), "did you mean 'fashion-mnist'?"),
        (("train", "--model", "cnm"), "did you mean 'cnn'?"),
        (("train", "--model", "cnn", "--norm", "batch"), "--norm is an option of resnet20 alone"),
        (("train", "--loss", "cross"), "loss"),
        (("train", "--epochs", "0"), "epochs must be above 0"),
        (("train", "--workers", "-1"), "must not be negative"),
        (("train", "nothing.py:experiment"), "no file 'nothing.py'"),
        (("train", "--shards", "5000"), "5000"),
        (("resume", "nowhere"), "holds no run"),
        (("strategies", "adm"), "did you mean 'admm'?"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "train":
        data = () if "--data" in arguments else ("--data", "digits")
        arguments = (*arguments, *data, "--cache", str(cache), "--quiet")
    code, output, errors = invoke(*arguments)
    assert code == 2, errors
    assert output == ""
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_experiment_of_the_wrong_kind_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine.py").write_text("experiment = 5\n")
    code, _, errors = invoke("train", f"{tmp_path / 'mine.py'}:experiment", "--cache", cache)
    assert code == 2
    assert "has no trainpool.Experiment named 'experiment'" in errors


def test_debug_shows_the_traceback(cache: Path) -> None:
    result = RUNNER.invoke(app, ["train", "--strategy", "nonsense", "--debug"])
    assert type(result.exception).__name__ == "ConfigError"
