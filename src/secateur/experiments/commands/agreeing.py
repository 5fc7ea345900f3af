"""How far a network agrees with the dense one it came from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied
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
    outputs: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for network, found in zip((dense, other), outputs, strict=True):
        work = copied(network)  # forwards keep things
        with evaluating(work), uncached(work), torch.no_grad():
            found.extend(tensors_in(called(work, inputs, False)) for inputs, _ in batches)
    wanted, given = ([torch.cat(parts) for parts in zip(*each, strict=True)] for each in outputs)
    return compared(wanted, given)


def compared(wanted: list[Tensor], given: list[Tensor]) -> Agreement:
    """Compare outputs with those of the dense network: tensors whose first dim is the examples."""
    pairs = zip(wanted, given, strict=True)
    difference = sum(float((b.double() - a.double()).square().sum()) for a, b in pairs)
    size = sum(float(a.double().square().sum()) for a in wanted)
    error = math.sqrt(difference / size) if size else math.inf if difference else 0.0
    same = None
    if len(wanted) == 1 and wanted[0].dim() == 2 and wanted[0].shape[1] > 1 and len(wanted[0]):
        same = int((predictions(wanted[0]) == predictions(given[0])).sum())
    return Agreement(len(wanted[0]), same, error)
