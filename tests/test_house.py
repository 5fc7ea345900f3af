"""The house keeps its shape: no file imports itself around a corner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from house import circles, files_of, tables_of_operators

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def test_no_circle_of_files():
    assert circles(files_of(SOURCE)) == []


def test_a_circle_is_found_whatever_way_it_is_imported(tmp_path):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from house import b\n")
    (package / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.c import C\n"
    )
    (package / "c.py").write_text("def late():\n    from .a import A\n")
    (package / "d.py").write_text("from house import a\n")
    assert circles(files_of(tmp_path)) == [["house.a", "house.b", "house.c"]]


def test_the_picture_of_the_house_is_what_the_script_draws():
    done = subprocess.run(
        [sys.executable, "docs/house.py"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_a_table_of_operators_is_known_by_its_keys(tmp_path):
    """What a key stands for is the file's own word, unless it lists names itself."""
    (tmp_path / "tables.py").write_text(
        "KEYS = {'relu': 1, 'conv2d': 2, 'matmul': 3}\n"
        "SORTS = {'moves': ('view', 'permute'), **{'joins': ['cat']}}\n"
        "OWN = {1: 'relu', 2: f('conv2d'), 3: 'matmul', **{op: f('view') for op in OPS}}\n"
        "NAMES = frozenset('relu conv2d matmul'.split())\n"
    )
    assert tables_of_operators(files_of(tmp_path)) == ["tables:KEYS", "tables:SORTS", "tables:NAMES"]
