"""The examples run, and the pages' code and links are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXTENDING = ROOT / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", EXTENDING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(arguments: list[str], folder: Path) -> str:
    """What a Python process says that runs in `folder`, with a cache of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("name", "least"), [("own_model", 0.85), ("own_images", 0.9)])
def test_an_example_trains(name: str, least: float, tmp_path: Path) -> None:
    said = re.fullmatch(r"test accuracy (\d\.\d+)\n", run([str(ROOT / "examples" / f"{name}.py")], tmp_path))
    assert said
    assert least < float(said[1]) <= 1
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_the_command_line_trains_the_example(tmp_path: Path) -> None:
    place = f"{ROOT / 'examples' / 'own_model.py'}:experiment"
    arguments = ["train", place, "--strategy", "admm", "--workers", "2", "--epochs", "1", "--out", "run", "--quiet"]
    assert "test accuracy" in run(["-m", "trainpool.cli", *arguments], tmp_path)
    assert (tmp_path / "run" / "model.safetensors").exists()


def with_citation() -> list[str]:
    """The strategies among the blocks of extending.md."""
    return [block for block in BLOCKS if "\nCitation" in block]


def test_the_pages_code_compiles() -> None:
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        compile(block, str(EXTENDING), "exec")


def test_the_pages_strategy_runs_on_the_pages_kernel_and_pool(tmp_path: Path) -> None:
    (strategy,) = with_citation()
    kernel = next(number for number, block in enumerate(BLOCKS) if "class LeastSquares" in block)
    (tmp_path / "slowmo.py").write_text(strategy, encoding="utf-8")
    (tmp_path / "own.py").write_text(BLOCKS[kernel] + "\n" + BLOCKS[kernel + 1], encoding="utf-8")
    said = run(["own.py"], tmp_path)
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*", said.partition("after")[0])]
    assert numbers == pytest.approx([1, -2, 3], abs=0.01)


def test_the_pages_strategy_is_found_listed_and_trains(tmp_path: Path) -> None:
    (strategy,) = with_citation()
    (tmp_path / "slowmo.py").write_text(strategy, encoding="utf-8")
    code = f"""
import sys
from trainpool import strategies
strategies.__path__.append({str(tmp_path)!r})
sys.argv = ["trainpool", *sys.argv[1:]]
from trainpool.cli import main
main()
"""
    listed = run(["-c", code, "strategies", "slowmo"], tmp_path)
    assert "ICLR 2020" in listed
    assert "--set beta=0.5" in listed
    data = ["--data", "digits", "--model", "logistic", "--epochs", "1", "--workers", "2"]
    arguments = ["train", *data, "--strategy", "slowmo", "--set", "beta=0.7", "--out", "run", "--quiet"]
    assert "test accuracy" in run(["-c", code, *arguments], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"
