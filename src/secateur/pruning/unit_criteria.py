"""Importance of whole units: ``criterion(structure, data, loss)`` gives one score a unit of each group.

Criteria on single weights (Magnitude, Taylor, ...) serve as well: their scores are summed over all the
entries of a unit. So under a budget that compares groups (Global, LAMP, ParameterShare) a unit with many
entries outranks one with few; a criterion on units that is normalised by group does not have that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from secateur.errors import CriterionError
from secateur.graph.capture import module_of, parameters_of, tensor_of
from secateur.pruning.calibration import Batches, Loss, operand_rms
from secateur.pruning.capabilities import says
from secateur.pruning.given import check_scores, scores_given
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
    """The sum of |w| over a unit's incoming weights.

    Needs no data. Biases and norms do not count where a matrix makes the unit.

    Args:
        normalise: divide by the mean over the group, so that layers of different scale compare.

    Source:
        Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> net[0].weight.data = torch.tensor([[1.0, 1.0], [3.0, -4.0], [0.0, 2.0]])
        >>> sc.L1Norm()(sc.trace(net, torch.ones(1, 2)))
        {'0 -> 2': tensor([2., 7., 2.], dtype=torch.float64)}
    """

    normalise: bool = False
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        return _by_group(structure, lambda g: _incoming(structure, g, 1), self.normalise)


@dataclass(frozen=True)
class L2Norm:
    """The L2 norm of a unit's incoming weights, over every tensor that makes it.

    Needs no data. Biases and norms do not count where a matrix makes the unit.

    Args:
        normalise: divide by the mean over the group, so that layers of different scale compare.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> net[0].weight.data = torch.tensor([[6.0, 8.0], [3.0, -4.0], [0.0, 2.0]])
        >>> structure = sc.trace(net, torch.ones(1, 2))
        >>> sc.L2Norm()(structure)
        {'0 -> 2': tensor([10.,  5.,  2.], dtype=torch.float64)}
        >>> sc.prune(net, sc.L2Norm(), sc.Uniform(1 / 3), structure=structure)["0.weight"]
        tensor([[ True,  True],
                [ True,  True],
                [False, False]])
    """

    normalise: bool = False
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        return _by_group(structure, lambda g: _incoming(structure, g, 2).sqrt(), self.normalise)


@dataclass(frozen=True)
class FPGM:
    """How far a unit's incoming weights are from the geometric median of its group's: the sum of the
    distances to all of them.

    A unit in the midst of the others is the one that they can replace, whatever its size. Needs no data.

    Args:
        normalise: divide by the mean over the group, so that layers of different scale compare.

    Source:
        He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration"
        (CVPR 2019).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> net[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> sc.FPGM()(sc.trace(net, torch.ones(1, 2)))  # the second lies between the others
        {'0 -> 2': tensor([15., 10., 15.], dtype=torch.float64)}
    """

    normalise: bool = False
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        def score(group: Group) -> Tensor:
            rows = torch.cat([_rows(structure, part) for part in _makers(structure, group)], 1)
            return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)

        return _by_group(structure, score, self.normalise)


@dataclass(frozen=True)
class BNScale:
    """|scale| of the normalisation after a unit, the mean over its norms.

    Train with ``secateur.slimming`` first, which makes scales small. A group without a norm is an error:
    exclude it.

    Source:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        >>> net[1].weight.data = torch.tensor([1.0, -0.5, 0.0])
        >>> sc.BNScale()(sc.trace(net, torch.ones(2, 2)))
        {'0 -> 2': tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)}
    """

    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False
    reads_norms: ClassVar[bool] = True

    def __call__(self, structure: Structure, data: Any = None, loss: Any = None) -> UnitScores:
        return _by_group(structure, lambda g: _scales(structure, g), False)


@dataclass(frozen=True)
class ActivationNorm:
    """rms of a unit's output on ``data`` x L2 norm of the weights that read it.

    That is what a unit contributes to the next layer, summed over the layers that read it. Needs ``data``, no
    labels.

    Args:
        normalise: divide by the mean over the group, so that layers of different scale compare.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> net[0].weight.data, net[0].bias.data = torch.eye(2), torch.zeros(2)
        >>> net[2].weight.data = torch.tensor([[1.0, 10.0]])
        >>> x = torch.tensor([[3.0, 2.0]])
        >>> sc.ActivationNorm(normalise=False)(sc.trace(net, x), data=[x])
        {'0 -> 2': tensor([ 3., 20.], dtype=torch.float64)}
    """

    normalise: bool = True
    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True

    def __call__(self, structure: Structure, data: Batches | None = None, loss: Any = None) -> UnitScores:
        rms = operand_rms(structure, data, "ActivationNorm")

        def score(group: Group) -> Tensor:
            total = torch.zeros(len(group), dtype=torch.float64)
            watched = [part for part in group.slices if (part.name, part.dim) in rms]
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
        weights = dict(parameters_of(structure.model))
        return dict(scores_given(criterion, on_units, weights, structure, data, loss))
    least = 1 if says(criterion, "scores_vectors") else 2  # dims
    parts = [part for group in structure.groups.values() for part in group.slices if part.masked]
    names = {part.name for part in parts if tensor_of(structure.model, part.name).dim() >= least}
    targets = find_targets(structure.model, include=sorted(names))
    weights = {name: target.weight for name, target in targets.items()}
    scores = scores_given(criterion, criterion, weights, targets, data, loss)
    found: dict[str, Tensor] = {}
    for name, group in structure.groups.items():
        total = torch.zeros(len(group), dtype=torch.float64)
        for part in group.slices:
            if part.name in scores:
                raw = scores[part.name]
                check_scores(criterion, part.name, raw, tuple(tensor_of(structure.model, part.name).shape))
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
    total = torch.zeros(len(group), dtype=torch.float64)
    for part in _makers(structure, group):
        total += _squares(structure, part, power)
    return total


def _makers(structure: Structure, group: Group) -> Sequence[Slice]:
    """Return the parts that a unit's size is read from: the matrices that make it, where there are any."""
    made = [part for part in group.slices if not part.reads and part.masked]
    matrices = [part for part in made if tensor_of(structure.model, part.name).dim() > 1]
    return matrices or made or group.slices


def _rows(structure: Structure, part: Slice) -> Tensor:
    """Return all entries of a part, a row a unit."""
    weight = tensor_of(structure.model, part.name).detach().double().cpu().movedim(part.dim, 0)
    return weight[torch.from_numpy(part.indices)].flatten(1)


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
