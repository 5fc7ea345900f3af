"""Which class a pruned network lost most of: what a mean over all classes hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.aggregate import Column, Group, filled, which_of
from secateur.task.base import ACCURACY

Class = Mapping[str, Any]


def lost_most(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]] | None:
    """Return (header, rows), a row for each group whose trials know their classes; None where none does."""
    known = {id(group): worst for group in groups if (worst := _worst(group)) is not None}
    shown = [group for group in groups if id(group) in known]
    if not shown:
        return None

    def figure(name: str) -> Column:
        return f"{name} %", lambda group: ACCURACY.number(known[id(group)][name])

    columns: list[Column] = [
        *which_of(shown, "study"),
        ("point", lambda group: group.label),
        ("class", lambda group: str(known[id(group)]["name"])),
        ("test examples", lambda group: f"{known[id(group)]['number']:,}"),
        figure("dense"),
        figure("final"),
        ("change", lambda group: ACCURACY.number(-_drop(known[id(group)]), "+")),
    ]
    return filled(columns, shown)


def _worst(group: Group) -> Class | None:
    """Return the class of the largest drop, its shares right the means over the group's trials."""
    rows = [trial["by_class"] for trial in group.trials if trial.get("by_class")]
    if not rows:
        return None
    by_name: dict[str, list[Class]] = {}
    for row in (row for trial in rows for row in trial):
        by_name.setdefault(row["name"], []).append(row)
    means = [
        {"name": name, "number": of[0]["number"]}
        | {key: sum(row[key] for row in of) / len(of) for key in ("dense", "final")}
        for name, of in by_name.items()
    ]
    return max(means, key=_drop)


def _drop(row: Class) -> float:
    return row["dense"] - row["final"]
