"""Node.js, for the browser's worker."""

import os
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parent.parent / "web"


def run(*command: str, **environment: str) -> None:
    """Run in web/; what it printed is the failure's text."""
    settings = {**os.environ, "CI": "1", "NO_COLOR": "1", **environment}
    result = subprocess.run(command, cwd=WEB, capture_output=True, text=True, env=settings)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}:\n{result.stdout[-8000:]}\n{result.stderr[-4000:]}", pytrace=False)
