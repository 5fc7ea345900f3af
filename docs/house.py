"""Draw the house from the contract that CI checks: each room, what it is, and that it imports only downwards.

python docs/house.py          # print it
python docs/house.py --write  # into CONTRIBUTING.md
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- the house -->\n", "<!-- end of the house -->\n"


def rooms() -> list[tuple[str, str, str]]:
    """Return each room of the contract, the top first: its name, a brace round those of one layer, and what
    it says of itself."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    found = []
    for layer in layers:
        names = [name.strip().removeprefix("secateur.") for name in layer.split("|")]
        braces = " " if len(names) == 1 else "┐" + "│" * (len(names) - 2) + "┘"
        found += [(name, brace, said(name)) for name, brace in zip(names, braces, strict=True)]
    return found


def said(name: str) -> str:
    path = ROOT / "src" / "secateur" / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    doc = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return doc.split(". ")[0].rstrip(".")


def picture() -> str:
    """Return the rooms as a table of text, each above what it may import."""
    lines = rooms()
    width = max(len(name) for name, _, _ in lines)
    return (
        "```text\n"
        + "\n".join(f"{name:<{width}} {brace} {words}" for name, brace, words in lines)
        + "\n```\n"
    )


def main() -> None:
    if "--write" not in sys.argv:
        print(picture())
        return
    path = ROOT / "CONTRIBUTING.md"
    head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(head + BEGIN + picture() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
