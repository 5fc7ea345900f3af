"""What mkdocs puts into the pages as it builds them: the public names by what they are for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import griffe

import secateur

_ROOT = Path(secateur.__file__).parent


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the places that pages leave for what the code says itself."""
    return markdown.replace("<!-- every public name -->", api()).replace("<!-- index -->", index())


def api() -> str:
    """Return a section for each purpose with the documentation of its names, as users write them."""
    parts = []
    for purpose, names in secateur.PURPOSES.items():
        parts.append(f"## {purpose}\n")
        parts += [f"::: secateur.{name}" for name in names]
    return "\n".join(parts)


def index() -> str:
    """Return a table for each purpose: the name, and the first sentence of what it is."""
    parts = []
    for purpose, names in secateur.PURPOSES.items():
        rows = [f"| [`{name}`](api.md#secateur.{name}) | {first_sentence(name)} |" for name in names]
        parts += [f"### {purpose}\n", "| name | what |", "| --- | --- |", *rows, ""]
    return "\n".join(parts)


def first_sentence(name: str) -> str:
    """Return the first sentence of a public name's docstring, read from its source."""
    place = _ROOT.joinpath(*secateur.PUBLIC[name].split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    node = next(part for part in tree.body if isinstance(part, kinds) and part.name == name)
    paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z0-9)`\"])\. ", paragraph)[0].rstrip(".")
    return sentence.replace("|", r"\|")


class Examples(griffe.Extension):
    """Griffe knows a section of code by "Examples", and takes "Example" for a note in Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
