"""The browser's worker: its own tests, run by Node.js, and in Chromium where that is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = ROOT / "web"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """npm, with the packages of web/package-lock.json in place."""
    found, node = shutil.which("npm"), shutil.which("node")
    if found is None or node is None:
        pytest.skip("Node.js and npm are not installed: the browser's worker is not tested")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip("v\n")
    if tuple(map(int, version.split(".")[:2])) < (20, 19):
        pytest.skip(f"Node.js {version} is too old for the browser's tools: 20.19 or newer is needed")
    lock, done = WEB / "package-lock.json", WEB / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        run(found, "ci")
    return found


def run(*command: str) -> None:
    """Run in web/; what it printed is the failure's text."""
    environment = {**os.environ, "CI": "1", "NO_COLOR": "1"}
    result = subprocess.run(command, cwd=WEB, capture_output=True, text=True, env=environment)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}:\n{result.stdout[-8000:]}\n{result.stderr[-4000:]}", pytrace=False)


def test_types_lint_and_format(npm: str) -> None:
    run(npm, "run", "check")


def test_the_pure_modules_agree_with_python(npm: str) -> None:
    run(npm, "run", "test")


def test_the_kernel_in_chromium(npm: str) -> None:
    if not any(map(shutil.which, CHROMIUM)) and "CHROMIUM" not in os.environ:
        pytest.skip("Chromium is not installed (or name it in CHROMIUM): the browser's kernel is not tested")
    run(npm, "run", "test:browser")


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (WEB / "package-lock.json").read_text()
