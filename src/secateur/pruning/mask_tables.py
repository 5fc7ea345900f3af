"""What masks print: a table of tensors, or of groups of units, with the totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.text import table


def written(
    layers: Sequence[Mapping[str, Any]],
    units: Mapping[str, tuple[int, int, float | None]],
    requested: float | None,
    notes: Sequence[str],
) -> str:
    """Lay masks out as a table, of groups where whole ``units`` (kept, of, requested) were pruned.

    ``requested``: what was asked for of all together.
    """
    rows: list[tuple[Any, ...]] = [
        (row["name"], "x".join(map(str, row["shape"])), row["weights"], row["kept"], row["requested"])
        for row in layers
    ]
    if not units:
        lines = _table(("tensor", "shape", "weights"), rows, requested)
    else:
        total, kept = (sum(row[i] for row in rows) for i in (-3, -2))
        entries = f"{total - kept:,} of {total:,} entries of {len(rows)} tensors are masked"
        groups = [(name, of, left, asked) for name, (left, of, asked) in units.items()]
        lines = [*_table(("group", "units"), groups, requested), entries]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]], requested: float | None) -> list[str]:
    """Lay out rows (words, number, kept, requested share) as lines, with their totals."""
    total, kept = (sum(row[i] for row in rows) for i in (-3, -2))
    whole = ("all", *[""] * (len(head) - 2), total, kept, requested)
    cells = [(*head, "kept", "sparsity", "requested")]
    for *names, number, left, asked in [*rows, whole]:
        share = "" if asked is None else f"{asked:.2%}"
        masked = 1 - left / number if number else 0.0
        cells.append((*names, f"{number:,}", f"{left:,}", f"{masked:.2%}", share))
    return table(cells, words=len(head) - 1)
