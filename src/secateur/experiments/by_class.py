"""The test accuracy of each class alone: a mean hides which class paid for it."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.data.dataset import Dataset, Split
from secateur.training.evaluate import evaluate_on


def by_class(data: Dataset, dense: nn.Module, pruned: nn.Module) -> list[dict[str, Any]]:
    """Return a row for each class that the test split has: how many examples, and both networks' accuracy."""
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(data.classes):
        members = data.test.labels == label
        if not members.any():
            continue
        part = Split(data.test.inputs[members], data.test.labels[members])
        accuracies = {
            "dense": evaluate_on(dense, part).accuracy,
            "pruned": evaluate_on(pruned, part).accuracy,
        }
        rows.append({"name": name, "number": len(part), **accuracies})
    return rows
