"""The browser's worker: its own tests, run by Node.js, and in Chromium where that is installed."""

import pytest

from node import WEB, run


def test_types_lint_and_format(npm: str) -> None:
    run(npm, "run", "check")


def test_the_pure_modules_agree_with_python(npm: str) -> None:
    run(npm, "run", "test")


@pytest.mark.usefixtures("chromium")
def test_the_kernel_in_chromium(npm: str) -> None:
    run(npm, "run", "test:browser")


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (WEB / "package-lock.json").read_text()
