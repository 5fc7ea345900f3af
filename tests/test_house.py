"""The house keeps its shape: no file imports itself around a corner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from house import circles, files_of

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
