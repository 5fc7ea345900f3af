"""What runs a packed network imports numpy and the standard library, and little else where it is there."""

from __future__ import annotations

import ast
import sys
from importlib.resources import files

OPTIONAL = {"numba", "llvmlite", "scipy", "zstandard"}


def test_the_package_imports_itself_numpy_and_what_may_be_absent():
    for file in files("secateur.runtime").iterdir():
        if not file.name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{file.name} leaves its package"
                names = [] if node.level else [node.module or ""]
            found = {name.split(".")[0] for name in names}
            assert found <= {"numpy", *OPTIONAL, *sys.stdlib_module_names}, (file.name, found)
