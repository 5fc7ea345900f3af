"""The class that lost most at each point: a mean over all classes hides which one paid for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.report.aggregate import Figure, Group, figure_of, percent


def worst_class_table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): of each point the class whose test accuracy fell most, mean over the seeds, and
    how far; no row for points whose trials do not say."""
    header = ["", "class", "test examples", "dense %", "pruned %", "change", "all classes, change"]
    rows: list[list[str]] = []
    for group in groups:
        found = _worst(group)
        if found is None:
            continue
        name, number, dense, pruned = found
        whole, last = group.figure("accuracy_dense"), group.figure(group.final)
        change = f"{100 * (last.mean - whole.mean):+.2f}" if whole and last else ""
        row = [group.label, name, f"{number:,}", percent(dense), percent(pruned)]
        rows.append([*row, f"{100 * (pruned.mean - dense.mean):+.2f}", change])
    return header, rows


def _worst(group: Group) -> tuple[str, int, Figure, Figure] | None:
    """Return the class that lost most: its name, its number of examples, and both accuracies."""
    classes: dict[str, list[Mapping[str, float]]] = {}
    for trial in group.trials:
        for row in trial.get("by_class", []):
            classes.setdefault(row["name"], []).append(row)
    found: list[tuple[str, int, Figure, Figure]] = []
    for name, rows in classes.items():
        dense, pruned = (figure_of(row[which] for row in rows) for which in ("dense", "pruned"))
        if dense and pruned:
            found.append((name, int(rows[0]["number"]), dense, pruned))
    return min(found, key=lambda each: each[3].mean - each[2].mean, default=None)
