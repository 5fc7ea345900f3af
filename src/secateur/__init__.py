"""secateur: prune PyTorch networks, hold the zeros through any training, and say honestly what it cost."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# The stub beside this file is the one list of public names; a line of it is a name's, a comment a purpose.
_LINE = re.compile(
    r"^(?:# (?P<purpose>.+)|from secateur\.(?P<module>\S+) import (?P<name>\w+) as \w+)$", re.M
)

PUBLIC: dict[str, str] = {}
"""The module of each public name, below the package."""
PURPOSES: dict[str, list[str]] = {}
"""The public names by what they are for."""
_names: list[str] = []
for _line in _LINE.finditer(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")):
    if _line["purpose"]:
        _names = PURPOSES.setdefault(_line["purpose"], [])
    else:
        PUBLIC[_line["name"]] = _line["module"]
        _names.append(_line["name"])

__doc__ = str(__doc__) + "".join(
    f"\n\n{purpose}\n    {', '.join(names)}" for purpose, names in PURPOSES.items()
)
__all__ = ["PUBLIC", "PURPOSES", "__version__", *PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("secateur.errors")
    if name not in PUBLIC:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"secateur.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), "errors", *PUBLIC})
