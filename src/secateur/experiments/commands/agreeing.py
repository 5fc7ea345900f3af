"""How far a network agrees with the dense one it came from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.data.dataset import rows_of
from secateur.graph.compare import tensors_in
from secateur.running import evaluating, uncached
from secateur.task.classifying import predictions
from secateur.training.evaluate import called


@dataclass(frozen=True)
class Agreement:
    """On ``number`` examples: for how many the two networks choose the same class (``same``; None where
    outputs are no scores of classes, one row an example), and by how much all outputs differ, relative to the
    dense ones (``error``: root of the sum of squares over that of the dense ones)."""

    number: int
    same: int | None
    error: float

    def __repr__(self) -> str:
        examples = f"{self.number:,} example{'s' * (self.number != 1)}"
        error = f"outputs differ by {100 * self.error:.2g} %"
        if self.same is None:
            return f"{error} on {examples}"
        return f"the same largest output in {self.same:,} of {examples} ({self.share}); {error}"

    @property
    def share(self) -> str:
        return "" if self.same is None else f"{100 * self.same / self.number:.2f} %"


def agreement(dense: nn.Module, other: nn.Module, batches: Iterable[tuple[Any, Any]]) -> Agreement:
    """Run both networks in eval mode on batches of (inputs, anything), and compare what they give."""
    given = [inputs for inputs, _ in batches]
    found: list[list[list[Tensor]]] = []
    for network in (dense, other):
        work = copied(network)  # forwards keep things
        with evaluating(work), uncached(work), torch.no_grad():
            found.append([tensors_in(called(work, inputs, False)) for inputs in given])
    return compared(found[0], found[1], [rows_of(inputs) for inputs in given])


def compared(wanted: list[list[Tensor]], given: list[list[Tensor]], rows: list[int]) -> Agreement:
    """Compare what two networks gave on batches of so many examples, the dense one first."""
    difference = size = 0.0
    same: int | None = 0
    for theirs, ours, number in zip(wanted, given, rows, strict=True):
        pairs = zip(theirs, ours, strict=True)
        difference += sum(float((b.double() - a.double()).square().sum()) for a, b in pairs)
        size += sum(float(a.double().square().sum()) for a in theirs)
        if same is not None and len(theirs) == 1 and theirs[0].dim() == 2 and theirs[0].shape[1] > 1:
            same = None if len(theirs[0]) != number else same + int(_alike(theirs[0], ours[0]))
        else:
            same = None
    error = math.sqrt(difference / size) if size else math.inf if difference else 0.0
    return Agreement(sum(rows), same if rows else None, error)


def _alike(wanted: Tensor, given: Tensor) -> Tensor:
    return (predictions(wanted) == predictions(given)).sum()
