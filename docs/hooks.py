"""What mkdocs puts into the pages as it builds them: the public names by what they are for."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import griffe

import secateur

_ROOT = Path(secateur.__file__).parent
_REPOSITORY = Path(__file__).parents[1]
_EXAMPLES = _REPOSITORY / "examples"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the places that pages leave for what the code says itself."""
    markdown = re.sub(r"<!-- script: (\w+\.py) -->", lambda found: script(found[1]), markdown)
    markdown = markdown.replace("<!-- every example -->", examples())
    return markdown.replace("<!-- every public name -->", api()).replace("<!-- index -->", index())


def on_post_build(config: Mapping[str, str], **_: object) -> None:
    """Put llms.txt at the root of the pages, its links leading to them."""
    text = (_REPOSITORY / "llms.txt").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/(?:index|(.*?))\.md\)", lambda found: f"]({found[1] or '.'}/)", text)
    Path(config["site_dir"], "llms.txt").write_text(text, encoding="utf-8")


def script(name: str) -> str:
    """Return a script of the examples as code, whole."""
    text = (_EXAMPLES / name).read_text(encoding="utf-8")
    return f'```python title="examples/{name}"\n{text.strip()}\n```'


def examples() -> str:
    """Return a section for each script: what it says of itself, and its code to unfold."""
    parts = []
    for path in sorted(_EXAMPLES.glob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        code = script(path.name).replace("\n", "\n    ")
        parts += [f"## `{path.stem}`\n", said, "", f'??? example "{path.name}"\n\n    {code}', ""]
    return "\n".join(parts)


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
