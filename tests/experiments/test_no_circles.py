"""The files of experiments import each other without a circle, imports for the type checker counted."""

import ast
import graphlib
from pathlib import Path

import secateur

ROOT = Path(secateur.__file__).parent
FILES = {
    ".".join(("secateur", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in (ROOT / "experiments").rglob("*.py")
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (
                name if (name := f"{node.module}.{alias.name}") in FILES else node.module
                for alias in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_file_imports_itself_by_way_of_others():
    graph = {name: {found for found in imported(path) if found in FILES} for name, path in FILES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(FILES)
