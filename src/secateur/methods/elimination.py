"""Which units the next layers miss least once they are refitted: backward elimination by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.errors import BudgetError, CriterionError
from secateur.graph.names import unwrapped
from secateur.methods.fitted_layer import FittedLayer
from secateur.methods.reconstruction import Shown, fitted_layer
from secateur.pruning.calibration import Batches
from secateur.pruning.layer_by_layer import calls_of
from secateur.pruning.ranks import together
from secateur.running import as_written
from secateur.structure.units import Group, Structure


@dataclass(frozen=True)
class Reconstruction:
    """How much the outputs of the next layers change without a unit, once these layers are refitted.

    Units of a group are eliminated one after the other, each time the one without which the least squares of
    the layers that read the group are smallest; a unit's score is the error that has built up when it goes,
    a share of the outputs' variance, summed over these layers. So groups compare under a ``Global`` budget.
    Prune by it, then ``secateur.reconstruct`` refits. Needs ``data``, no labels, and reads it once a layer.

    Args:
        ridge: pulls the refitted weights towards the old ones, in units of the mean square of an input.

    Raises:
        BudgetError: for an impossible ridge.

    Source:
        Hassibi & Stork, "Optimal Brain Surgeon" (1993), for blocks of weights and a layer's outputs.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
        >>> net[0].weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.5]])  # two are the same
        >>> net[1].weight.data = torch.ones(1, 3)
        >>> x = torch.eye(2)
        >>> scores = sc.Reconstruction(ridge=1e-9)(sc.trace(net, x), data=[x])["0 -> 1"]
        >>> [round(float(score), 3) for score in scores]  # one of the two is missed by nobody
        [0.0, 1.0, 0.059]
    """

    ridge: float = 1e-3
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.ridge < float("inf"):
            raise BudgetError(f"ridge is {self.ridge}; a number above 0 is right")

    @torch.no_grad()
    def __call__(
        self, structure: Structure, data: Batches | None = None, loss: Any = None
    ) -> dict[str, Tensor]:
        if data is None or isinstance(data, Iterator):
            raise CriterionError(
                "Reconstruction reads data several times; pass a list of batches or a DataLoader"
            )
        work = copied(unwrapped(structure.model)).eval()
        layers = _seen(structure, work, data)
        found = {}
        for name, group in structure.groups.items():
            readers = [
                _Reader(layers[path], features, self.ridge)
                for path, features in _features(group, work, layers).items()
            ]
            if not readers:
                raise CriterionError(f"Reconstruction: nothing that it can refit reads {name}; exclude it")
            found[name] = _eliminated(readers, len(group))
        return found


def _seen(structure: Structure, model: nn.Module, data: Batches) -> dict[str, FittedLayer]:
    """Return the layers that read the groups by path, with the sums of what they read and put out."""
    names = sorted({part.name for group in structure.groups.values() for part in group.slices if part.reads})
    found = dict(fitted_layer(structure, name, model, model) for name in names)
    layers = {path: layer for path, layer in found.items() if isinstance(layer, FittedLayer)}
    with together(structure.model) as peers, as_written():
        calls = calls_of(model, layers, data, "Reconstruction", peers) if layers else {}
        shown = Shown((model, model), structure, data, "Reconstruction", peers)
        for path, number in calls.items():
            if shown.to(layers[path], number):
                del layers[path]
    return {path: layers[path] for path in calls if path in layers}


def _features(group: Group, model: nn.Module, layers: Mapping[str, FittedLayer]) -> dict[str, list[Tensor]]:
    """Return by layer and unit the columns of the layer's matrix, of those kept, that read the unit."""
    found: dict[str, list[Tensor]] = {}
    for part in group.slices:
        path = part.name if part.name in layers else part.name.rpartition(".")[0]
        if part.reads and path in layers and part.dim == layers[path].view.input_dim:
            layer = layers[path]
            width = layer.weight.shape.numel() // (len(layer.weight) if part.dim else layer.weight.shape[1])
            inner = width // layer.weight.shape[part.dim]  # of a kernel
            place = torch.full((width,), -1)
            place[layer.columns.cpu()] = torch.arange(len(layer.columns))
            own = [place[np.add.outer(rows * inner, np.arange(inner)).ravel()] for rows in part.indices]
            known = found.setdefault(path, [torch.empty(0, dtype=torch.long)] * len(group))
            found[path] = [torch.cat([old, new[new >= 0]]) for old, new in zip(known, own, strict=True)]
    return found


class _Reader:
    """A layer's least squares while units go: the inverse of its inputs' second moments, and its weights."""

    def __init__(self, layer: FittedLayer, features: list[Tensor], ridge: float) -> None:
        xx, yy = layer.centred()
        pull = ridge * xx.diagonal().mean() + 1e-300
        self.inverse = torch.linalg.inv(xx + pull * torch.eye(len(xx)).to(xx))
        self.weight = layer.kept()[: len(xx)]
        self.energy = max(yy, 1e-300)
        self.features = features

    def costs(self, units: list[int]) -> list[float]:
        """Return by how much the error grows without each of these units."""
        sizes = {len(self.features[unit]) for unit in units}
        if len(sizes) == 1:  # the usual case, at once
            index = torch.stack([self.features[unit] for unit in units])
            blocks = self.inverse[index[:, :, None], index[:, None, :]]
            weight = self.weight[index]
            return ((weight * torch.linalg.solve(blocks, weight)).sum((1, 2)) / self.energy).tolist()
        return [cost for unit in units for cost in self.costs([unit])]

    def remove(self, unit: int) -> None:
        """Take a unit's inputs away, and refit the rest."""
        gone = self.features[unit]
        if len(gone):
            pull = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])
            self.weight -= pull.T @ self.weight[gone]
            self.inverse -= self.inverse[:, gone] @ pull
            self.weight[gone] = 0.0


def _eliminated(readers: list[_Reader], units: int) -> Tensor:
    """Return by unit the error that has built up when it goes, the one that adds least going first."""
    scores = torch.zeros(units, dtype=torch.float64)
    left, total = list(range(units)), 0.0
    while left:
        costs = np.sum([reader.costs(left) for reader in readers], axis=0)
        best = int(costs.argmin())
        total += max(0.0, float(costs[best]))
        unit = left.pop(best)
        scores[unit] = total
        for reader in readers:
            reader.remove(unit)
    return scores
