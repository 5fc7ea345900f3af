"""Importance of whole units: ``criterion(structure, data, loss)`` gives one score a unit of each group.

Criteria on single weights (Magnitude, Taylor, ...) serve as well: their scores are summed over all the
entries of a unit. So under a budget that compares groups (Global, LAMP, ParameterShare) a unit with many
entries outranks one with few; a criterion on units that is normalised by group does not have that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from secateur.errors import CriterionError
from secateur.graph.capture import module_of, tensor_of
from secateur.pruning.calibration import Batches, Loss, operand_rms
from secateur.pruning.capabilities import says
from secateur.pruning.targets import find_targets
from secateur.structure.layers import multiplied
from secateur.structure.units import Group, Slice, Structure

UnitScores = dict[str, Tensor]


class UnitCriterion(Protocol):
    """Gives the importance of every unit of every group."""

    counts_units: ClassVar[bool]

    def __call__(
        self, structure: Structure, data: Batches | None = None, loss: Loss | None = None
    ) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class L1Norm:
    """The sum of |w| over a unit's incoming weights (Li et al., 2017).

    ``normalise``: divided by the mean over the group, so that layers of different scale compare.
    """

    normalise: bool = False
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        return _by_group(structure, lambda g: _incoming(structure, g, 1), self.normalise)


@dataclass(frozen=True)
class L2Norm:
    """The L2 norm of a unit's incoming weights, over every tensor that makes it.

    ``normalise``: divided by the mean over the group, so that layers of different scale compare.
    """

    normalise: bool = False
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        return _by_group(structure, lambda g: _incoming(structure, g, 2).sqrt(), self.normalise)


@dataclass(frozen=True)
class BNScale:
    """|scale| of the normalisation after a unit (network slimming, Liu et al., 2017), the mean over
    its norms. A group without a norm is an error: exclude it."""

    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False
    reads_norms: ClassVar[bool] = True

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        return _by_group(structure, lambda g: _scales(structure, g), False)


@dataclass(frozen=True)
class ActivationNorm:
    """rms of a unit's output on ``data`` x L2 norm of the weights that read it, normalised by group.

    What a unit contributes to the next layer; the sum over the layers that read it. Needs ``data``,
    no labels. ``normalise=False`` compares layers of different scale as they are.
    """

    normalise: bool = True
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True

    def __call__(self, structure: Structure, data: Batches | None = None, loss: Any = None) -> UnitScores:
        rms = operand_rms(structure, data, "ActivationNorm")

        def score(group: Group) -> Tensor:
            total = torch.zeros(len(group), dtype=torch.float64)
            watched = [part for part in group.slices if part.reads and (part.name, part.dim) in rms]
            for part in watched:
                size = rms[part.name, part.dim][torch.from_numpy(part.indices)].square().sum(1).sqrt()
                total += size * _squares(structure, part, 2).sqrt()
            if not watched:
                raise CriterionError(
                    f"ActivationNorm: nothing that it can watch reads the units of {group.name}; exclude it"
                )
            return total

        return _by_group(structure, score, self.normalise)


def unit_scores(
    structure: Structure, criterion: Any, data: Batches | None, loss: Loss | None
) -> dict[str, Tensor]:
    """Return the scores of a criterion on units, or the sums of one on single weights."""
    on_units = criterion if says(criterion, "counts_units") else says(criterion, "score_units")
    if on_units is not None:
        return dict(on_units(structure, data, loss))
    least = 1 if says(criterion, "scores_vectors") else 2  # dims
    parts = [part for group in structure.groups.values() for part in group.slices if part.masked]
    names = {part.name for part in parts if tensor_of(structure.model, part.name).dim() >= least}
    targets = find_targets(structure.model, include=sorted(names))
    scores = criterion(targets, data, loss)
    found: dict[str, Tensor] = {}
    for name, group in structure.groups.items():
        total = torch.zeros(len(group), dtype=torch.float64)
        for part in group.slices:
            if part.name in scores:
                raw = scores[part.name]
                whole = raw if isinstance(raw, Tensor) else raw(slice(None))
                total += _gathered(whole.double().cpu(), part)
        found[name] = total
    return found


def _by_group(structure: Structure, score: Any, normalise: bool) -> UnitScores:
    found: UnitScores = {}
    for name, group in structure.groups.items():
        values = score(group)
        mean = values.mean()
        found[name] = values / mean if normalise and mean > 0 else values
    return found


def _incoming(structure: Structure, group: Group, power: int) -> Tensor:
    made = [part for part in group.slices if not part.reads and part.masked]
    matrices = [part for part in made if tensor_of(structure.model, part.name).dim() > 1]
    total = torch.zeros(len(group), dtype=torch.float64)
    for part in matrices or made or group.slices:
        total += _squares(structure, part, power)
    return total


def _squares(structure: Structure, part: Slice, power: int) -> Tensor:
    weight = tensor_of(structure.model, part.name)
    if part.reads:
        path = part.name.rpartition(".")[0].partition(".parametrizations")[0]
        weight = multiplied(module_of(structure.model, path), weight)
    return _gathered(weight.detach().abs().double().cpu().pow(power), part)


def _gathered(entries: Tensor, part: Slice) -> Tensor:
    rest = [d for d in range(entries.dim()) if d != part.dim]
    sums = entries.sum(dim=rest) if rest else entries
    return sums[torch.from_numpy(part.indices)].sum(1)


def _scales(structure: Structure, group: Group) -> Tensor:
    found = []
    for part in group.slices:
        path, _, leaf = part.name.rpartition(".")
        normed = "Norm" in type(module_of(structure.model, path)).__name__
        if normed and leaf == "weight" and tensor_of(structure.model, part.name).dim() == 1:
            found.append(_squares(structure, part, 1))
    if not found:
        raise CriterionError(f"BNScale: no norm scales the units of {group.name}; exclude the group")
    return torch.stack(found).mean(0)
