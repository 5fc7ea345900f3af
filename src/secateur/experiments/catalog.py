"""What there is, a line each, read from the source without importing it (torch takes seconds)."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import secateur
from secateur.data import DATASETS
from secateur.experiments.choices import MODULES, choices
from secateur.experiments.steps.table import STEPS
from secateur.models import MODELS
from secateur.task import TASKS

_ROOT = Path(secateur.__file__).parent


def catalog() -> dict[str, dict[str, str]]:
    """Return {kind: {name: one line}} of recipes, their steps, data sets, networks, criteria, ..."""
    recipes = sorted((_ROOT / "recipes").glob("*.yaml"))
    found = {"recipes": {path.stem: _described(path) for path in recipes}}
    for kind, places in (
        ("steps", STEPS),
        ("tasks", TASKS),
        ("data sets", DATASETS),
        ("networks", MODELS),
    ):
        found[kind] = {name: _first_line(*place.split(":")) for name, place in places.items()}
    for kind in MODULES:
        found["criteria" if kind == "criterion" else f"{kind}s"] = {
            name: _first_line(f"secateur.{secateur.PUBLIC[public]}", public)
            for name, public in choices(kind).items()
        }
    return found


def _described(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    match = re.search(r'^description: "?(.*?)"?$', text, re.MULTILINE)
    return match.group(1) if match else ""


def _first_line(module: str, attribute: str) -> str:
    """Return the first sentence, at most, of a class's or function's docstring."""
    doc = _docstrings(module).get(attribute, "")
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return paragraph if len(paragraph) <= 110 else re.split(r"(?<=[a-z)])[.;] ", paragraph)[0]


@functools.cache
def _docstrings(module: str) -> dict[str, str]:
    path = _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, kinds)}
