"""Words and tables as messages, reports and terminals show them."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def nearest(name: str, known: Iterable[str], number: int = 3) -> str:
    """Return ``"; did you mean 'x'?"`` for close matches, else ``"; known: ..."``."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=number, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}"


def printable(text: str, keep: str = "") -> str:
    """Return a text as a terminal or a page may show it: no character in it moves a cursor, changes the
    direction of writing or shows as nothing. Those are written out, like \\x1b, but for the ones in ``keep``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _written_out(c) for c in text)


def _written_out(character: str) -> str:
    if unicodedata.category(character) == "Zs":  # a space that does not break, say
        return " "
    return character.encode("unicode_escape").decode("ascii")


def shown(value: Any, most: int = 80) -> str:
    """Return what a line can show of a value: cut where it is long, and printable characters alone."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, Path) else repr(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def table(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Return the rows as lines with columns of one width: the first ``words`` to the left, as text
    is, the others to the right, as numbers are."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
