"""Runs a script of this folder in a process of its own, which kills itself in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def now() -> None:
    """Kill this process: nothing of it is run any more, no block is left, no file is closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def run(script: str, *arguments: object) -> None:
    """Run a script of this folder, and check that it was killed, not that it ended."""
    done = ended(script, *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr


def ended(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder to whatever end it takes."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / script), *map(str, arguments)]
    paths = [str(here), str(here.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
