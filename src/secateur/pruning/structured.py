"""``prune`` on whole units: scores a unit, a budget over units, and masks on all their slices."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, CriterionError, SecateurWarning, TargetError, nearest
from secateur.pruning.budgets import LAMP, Budget, Global, PerLayer, Threshold, Uniform, check_share
from secateur.pruning.calibration import Batches, Loss
from secateur.pruning.masks import Masks
from secateur.pruning.selection import Cut, Scores, cut_globally
from secateur.pruning.targets import matches
from secateur.pruning.unit_criteria import unit_scores
from secateur.structure.labels import Array
from secateur.structure.names import unwrapped
from secateur.structure.surgery import mask_units
from secateur.structure.units import Group, Structure, living

_BUDGETS = (Uniform, Global, PerLayer, Threshold, LAMP)


@dataclass(frozen=True)
class ParameterShare:
    """Units by score, of all groups together, until they carry ``sparsity`` of the parameters that the
    units of all groups carry (the last one may go a little over).

    A budget for whole units; with single weights ``Global`` is the same.
    """

    sparsity: float
    amount: ClassVar[str] = "sparsity"

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)

    def __call__(self, scores: Mapping[str, Scores], weights: Mapping[str, Tensor]) -> dict[str, Cut]:
        values = torch.cat([scores[name].whole().double() for name in scores])
        sizes = torch.cat([weights[name].double() for name in scores])
        reached = sizes[values.argsort(stable=True)].cumsum(0)
        number = int((reached < self.sparsity * sizes.sum()).sum()) + (self.sparsity > 0)
        return cut_globally(list(scores.values()), min(number, len(values)))


def prune_units(
    structure: Structure,
    model: nn.Module,
    criterion: Any,
    budget: Budget | ParameterShare,
    *,
    data: Batches | None,
    loss: Loss | None,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    masks: Masks | None,
    round_to: int,
    min_kept: int,
) -> Masks:
    """Zero all slices of the least important units of ``model`` in place; see :func:`secateur.prune`."""
    if unwrapped(model) is not structure.model:
        raise TargetError("structure= was traced from another model; trace this one")
    if not isinstance(budget, (*_BUDGETS, ParameterShare)):
        raise BudgetError(
            f"{type(budget).__name__} does not go with whole units; "
            f"one of {', '.join(b.__name__ for b in _BUDGETS)}, ParameterShare does"
        )
    if round_to < 1 or min_kept < 1:
        raise BudgetError(f"round_to is {round_to} and min_kept {min_kept}; both count units, from 1")
    chosen = select_groups(structure, include, exclude)
    if masks is not None and masks.model is not model:
        masks = masks.bind(model)
    part = replace(structure, groups=chosen)
    raw = unit_scores(part, criterion, data, loss)
    gone = _already(part, masks)
    scores = {name: _scores(name, raw.get(name), group, gone[name]) for name, group in chosen.items()}
    if isinstance(budget, Global):
        # A smaller group keeps what it has; the budget takes more elsewhere.
        budget = replace(budget, min_kept=max(budget.min_kept, min(min_kept, *map(len, chosen.values()))))
    if isinstance(budget, PerLayer):
        shares = [(name, share) for p, share in budget.sparsity.items() for name in _named(part, p)]
        budget = PerLayer(dict(reversed(shares)))
    sizes = {name: torch.full((len(g),), float(g.parameters)) for name, g in chosen.items()}
    cuts = budget(scores, sizes)
    doomed: dict[str, Array] = {}
    notes: list[str] = []
    for name in chosen:
        wanted = cuts[name].doomed(scores[name]).numpy().astype(bool) | gone[name]
        doomed[name] = _rounded(wanted, raw[name], gone[name], round_to, min_kept)
        back = int(wanted.sum() - doomed[name].sum())
        if back and int((~wanted).sum()) < min_kept:
            notes.append(f"{name}: {back} units stay that the budget would take, to keep {min_kept}")
    for note in notes:
        warnings.warn(note, SecateurWarning, stacklevel=4)
    if masks is not None:
        masks.apply()
    mask_units(structure.model, structure, doomed)
    notes += [f"{name}: {int(g.sum())} of {len(g)} units masked" for name, g in doomed.items() if g.any()]
    return Masks(
        model,
        _masks(structure, doomed, masks),
        requested_overall=getattr(budget, "sparsity", None) if not isinstance(budget, PerLayer) else None,
        notes=tuple(notes),
    )


def select_groups(
    structure: Structure, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> dict[str, Group]:
    """Return the groups with a parameter (or module, or name) that ``include`` matches and none that
    ``exclude`` does. Raises TargetError for a pattern that matches no group, or where none is left."""
    chosen = dict(structure.groups)
    for which, patterns in (("include", include), ("exclude", exclude)):
        if patterns is None:
            continue
        hit: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = {
                name
                for name, group in structure.groups.items()
                if name == pattern or any(matches(part.name, pattern) for part in _made(group))
            }
            if not found:
                known = [part.name for group in structure.groups.values() for part in _made(group)]
                raise TargetError(f"{which} pattern {pattern!r} matches no group{nearest(pattern, known)}")
            hit |= found
        chosen = {n: g for n, g in chosen.items() if (n in hit) == (which == "include")}
    if not chosen:
        raise TargetError(
            f"{type(structure.model).__name__} has no group of units to prune"
            + (
                " that the include and exclude patterns leave"
                if include or exclude
                else "; print(structure) says why"
            )
        )
    return chosen


def _named(structure: Structure, pattern: str) -> list[str]:
    """Return the groups that a pattern of a PerLayer budget names."""
    try:
        return list(select_groups(structure, pattern, None))
    except TargetError as error:
        known = ", ".join(structure.groups)
        raise BudgetError(f"PerLayer: {pattern!r} matches none of the targets: {known}") from error


def _made(group: Group) -> list[Any]:
    return [part for part in group.slices if not part.reads] or list(group.slices)


def _scores(name: str, raw: Tensor | None, group: Group, gone: Array) -> Scores:
    if raw is None or tuple(raw.shape) != (len(group),):
        raise CriterionError(f"{name}: the criterion gave no score for each of its {len(group)} units")
    return Scores(name, (len(group),), raw.__getitem__, torch.from_numpy(gone) if gone.any() else None)


def _already(structure: Structure, masks: Masks | None) -> dict[str, Array]:
    """Return by group the units of which earlier masks leave nothing."""
    kept: Mapping[str, Tensor] = {} if masks is None else masks.kept
    return {name: ~living(group, kept.get) for name, group in structure.groups.items()}


def _rounded(wanted: Array, raw: Tensor, gone: Array, round_to: int, min_kept: int) -> Array:
    """Give units back, the best first, until those kept are enough and a multiple of ``round_to``."""
    number = len(wanted)
    kept = int((~wanted).sum())
    goal = min(number, max(kept, min_kept))
    goal = min(number, -(-goal // round_to) * round_to)
    doomed = wanted.copy()
    best = [i for i in raw.argsort(descending=True, stable=True).tolist() if wanted[i] and not gone[i]]
    doomed[best[: max(0, goal - kept)]] = False
    return doomed


def _masks(structure: Structure, doomed: Mapping[str, Array], earlier: Masks | None) -> dict[str, Tensor]:
    tensors = dict(structure.model.named_parameters())
    kept = {} if earlier is None else {name: mask.clone() for name, mask in earlier.items()}
    for name, gone in doomed.items():
        for part in structure.groups[name].slices:
            if part.masked and gone.any():
                tensor = tensors[part.name]
                mask = kept.setdefault(part.name, torch.ones_like(tensor, dtype=torch.bool))
                index = torch.from_numpy(part.indices[gone].reshape(-1)).to(mask.device)
                mask.index_fill_(part.dim, index, False)
    return kept
