"""The formats that are fuzzed: how the material is made, what a mutant is, and the product's own reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutations import Chance


@dataclass(frozen=True)
class Special:
    """What is no plain file: a ``link`` to ``target``, a ``fifo``, or a ``folder``."""

    kind: str
    target: str = ""


Files = dict[str, bytes | Special]


@dataclass(frozen=True)
class Opened:
    """A format ready to be fuzzed: ``mutate`` gives the files of one mutant, always the same names unless
    ``wiped`` (then the folder is emptied before each), ``read`` reads what lies in a folder. ``always``:
    files that stand beside every mutant."""

    mutate: Callable[[Chance], Files]
    read: Callable[[Path], Any]
    originals: list[Files]
    wiped: bool = False
    always: Files | None = None


@dataclass(frozen=True)
class Format:
    """``open`` makes the material in a folder, or finds it there, and returns what is needed to fuzz."""

    name: str
    open: Callable[[Path], Opened]


def all_formats() -> dict[str, Format]:
    """Return every format by name, imported here: each imports the product's readers."""
    import formats_of_data
    import formats_of_images
    import formats_of_studies
    import formats_of_tensors

    parts = (formats_of_studies, formats_of_tensors, formats_of_data, formats_of_images)
    return {name: Format(name, opener) for part in parts for name, opener in part.FORMATS.items()}


def files_below(folder: Path, inside: str = "") -> Files:
    """Return the plain files below a folder, by their path in it."""
    return {
        str(Path(inside) / path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
