"""Every script of ``examples/`` runs in an empty folder, fits on a screen and prints dense beside pruned."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SLOW: set[str] = set()  # those that take longer than 20 seconds on one core
LINES = 60

_with_marks = [
    pytest.param(script, id=script.stem, marks=[pytest.mark.slow] if script.stem in SLOW else [])
    for script in SCRIPTS
]
_with_data = [script for script in SCRIPTS if "$SECATEUR_DATA" in script.read_text(encoding="utf-8")]


def run(script, folder, **environment):
    for package in packages_of(script):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{script.name} needs {package}, which is not installed")
    own = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def packages_of(script):
    """Return the packages that a script imports, wherever in it it does."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return sorted(found)


def compares(said):
    """Return whether figures of the dense network stand beside others'."""
    lines = said.lower()
    number = r"[^\n]*?\d"
    return all(re.search(word + number, lines) for word in (r"\bdense\b", r"\b(pruned|small|magnitude)\b"))


def test_there_are_examples():
    assert {"resnet_cifar10", "unet_segmentation", "lstm"} <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("said", ["", "dense", "dense 3.1", "dense, pruned", "pruned 4"])
def test_what_is_no_comparison(said):
    assert not compares(said)


@pytest.mark.parametrize("script", _with_marks)
def test_the_script_prints_its_comparison(script, tmp_path):
    said = run(script, tmp_path)
    print(said)
    assert compares(said), said
    text = script.read_text(encoding="utf-8")
    for picture in re.findall(r"Draws (\S+\.png)", ast.get_docstring(ast.parse(text)) or ""):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_script_fits_on_a_screen_and_says_what_it_is(script):
    text = script.read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= LINES
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.slow
@pytest.mark.parametrize("script", _with_data, ids=lambda script: script.stem)
def test_without_data_there_is_a_stand_in(script, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert compares(run(script, tmp_path, SECATEUR_DATA=nowhere, SECATEUR_CACHE=nowhere))
