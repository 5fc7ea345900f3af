"""``prune`` on whole units: scores a unit, a budget over units, and masks on all their slices."""

from __future__ import annotations

import bisect
import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, CriterionError, SecateurWarning, TargetError
from secateur.graph.capture import parameters_of
from secateur.graph.names import canonical_names, canonical_parameters, unwrapped
from secateur.measure.size import count_parameters
from secateur.pruning.alike import kinds_of, one_for_each, requested_of, taken_alike
from secateur.pruning.allocation import cut_keeping
from secateur.pruning.budgets import Share
from secateur.pruning.calibration import Batches, Loss
from secateur.pruning.capabilities import amount_of, changed, name_of, requested_share, says
from secateur.pruning.criteria import check_telling
from secateur.pruning.given import check_cuts
from secateur.pruning.holding import check_writable
from secateur.pruning.masks import Masks
from secateur.pruning.ranks import together
from secateur.pruning.selection import AnyCut, Cut, Scores
from secateur.pruning.targets import as_patterns, matches
from secateur.pruning.unit_criteria import unit_scores
from secateur.structure.labels import Array
from secateur.structure.proof import untraced
from secateur.structure.surgery import mask_units, parameters_left
from secateur.structure.units import Group, Structure, all_zero


class UnitBudget(Protocol):
    """Decides from the scores of units what is cut of each group, knowing what goes with them.

    It says ``counts_units = True``. What else it may say of itself: ``secateur.pruning.capabilities``.
    """

    counts_units: ClassVar[bool]

    def __call__(
        self, scores: Mapping[str, Scores], structure: Structure, min_kept: int
    ) -> Mapping[str, AnyCut]: ...


@dataclass(frozen=True)
class ParameterShare(Share):
    """Units by score, of all groups together, as few as take ``sparsity`` of the network's parameters.

    Counted are the entries that really leave when the units do, each once: rows and columns of one weight
    overlap. So the share is reached to a unit, and never missed: one unit fewer would. For whole units; with
    single weights ``Global`` is the same.

    Args:
        sparsity: the share of the network's parameters that goes at least, from 0 to 1.

    Raises:
        BudgetError: for what is no such share; when it is used, where the units that may go are too few.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> structure = sc.trace(net, torch.ones(1, 8))
        >>> masks = sc.prune(net, sc.L2Norm(), sc.ParameterShare(0.3), structure=structure)
        >>> masks.units  # 5 units of 13 parameters are 65 of the network's 212, and 4 would be under 30 %
        {'0 -> 2': (11, 16)}
    """

    counts_units: ClassVar[bool] = True
    counted: ClassVar[str] = "the network's parameters"

    def __call__(self, scores: Mapping[str, Scores], structure: Structure, min_kept: int) -> dict[str, Cut]:
        def share(count: int) -> float:
            return self.share(structure, _taken(cut_keeping(scores, count, min_kept), scores))

        every = sum(max(0, s.numel - min_kept) for s in scores.values())
        if (most := share(every)) < self.sparsity:
            raise BudgetError(
                f"ParameterShare({self.sparsity}) cannot be met: with {min_kept} units left in each group "
                f"{most:.4f} of the network's parameters go"
            )
        least = bisect.bisect_left(range(every), self.sparsity, key=share)
        return cut_keeping(scores, least, min_kept)

    def share(self, structure: Structure, pruned: Mapping[str, Array]) -> float:
        """Return the share of the network's parameters that leave it with some units."""
        total = count_parameters(structure.model)
        return (total - parameters_left(structure, pruned)) / total


def prune_units(
    structure: Structure,
    model: nn.Module,
    criterion: Any,
    budget: Any,
    *,
    data: Batches | None,
    loss: Loss | None,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    masks: Masks | None,
    round_to: int,
    min_kept: int,
    removable_only: bool,
    alike: bool,
) -> Masks:
    """Zero all slices of the least important units of ``model`` in place; see ``secateur.prune``."""
    if not isinstance(structure, Structure) or unwrapped(model) is not structure.model:
        raise TargetError(f"structure= {untraced(structure)}")
    chosen = select_groups(structure, include, exclude, removable_only)
    staying = select_groups(structure, include, exclude, False).keys() - chosen.keys()
    check_writable(dict(parameters_of(structure.model)))
    masks = None if masks is None else masks.bind(model)
    part = replace(structure, groups=chosen)
    raw = unit_scores(part, criterion, data, loss)
    earlier = already_pruned(part, masks)
    scores = {name: _scores(name, raw.get(name), group, earlier[name]) for name, group in chosen.items()}
    check_telling(criterion, list(scores.values()), data, loss)
    kinds = kinds_of(chosen) if alike else {name: [name] for name in chosen}
    ones = one_for_each(kinds, scores) if alike else scores
    cuts = check_cuts(budget, _cuts(part, budget, ones, min_kept), ones)
    wanted = taken_alike(kinds, cuts, ones, scores) if alike else _taken(cuts, scores)
    pruned = {n: _rounded(w, raw[n], earlier[n], round_to, min_kept) for n, w in wanted.items()}
    with together(model) as peers:
        peers.compare({name: torch.from_numpy(units) for name, units in pruned.items()})
    notes = _given_back(wanted, pruned, round_to, min_kept) + _share_noted(structure, budget, pruned)
    if staying:
        notes.append(
            f"left alone, because modules cannot lose them: {', '.join(sorted(staying))}; "
            "removable_only=False zeroes them, and compact(..., form='graph') takes them out (--graph)"
        )
    if masks is not None:
        masks.apply()
    mask_units(structure.model, structure, pruned)
    return Masks(
        model,
        _masks(structure, pruned, masks),
        requested=requested_of(kinds, cuts),
        requested_overall=requested_share(budget),
        notes=tuple(notes),
        units=({} if masks is None else masks.units)
        | {n: (int((~p).sum()), len(p)) for n, p in pruned.items()},
    )


def _cuts(
    structure: Structure, budget: Any, scores: Mapping[str, Scores], min_kept: int
) -> Mapping[str, AnyCut]:
    """Return the cuts of a budget on the units of some groups, each of which keeps ``min_kept``."""
    if says(budget, "counts_units"):
        return budget(scores, structure, min_kept)
    if (own := says(budget, "min_kept")) is not None:
        budget = changed(budget, min_kept=max(own, min_kept))
    if isinstance(shares := amount_of(budget), Mapping):
        named = [(n, share) for p, share in shares.items() for n in _named(structure, name_of(budget), p)]
        budget = changed(budget, **{budget.amount: dict(reversed(named))})
    return budget(scores, {name: torch.ones(s.numel) for name, s in scores.items()})


def _taken(cuts: Mapping[str, AnyCut], scores: Mapping[str, Scores]) -> dict[str, Array]:
    """Return by group which units the cuts take, those of earlier masks among them."""
    taken = {name: cuts[name].pruned(one).numpy().astype(bool) for name, one in scores.items()}
    return {n: t if (m := scores[n].masked) is None else t | m.numpy() for n, t in taken.items()}


def _share_noted(structure: Structure, budget: Any, pruned: Mapping[str, Array]) -> list[str]:
    counted = says(budget, "counted")
    if counted is None:
        return []
    share, asked = budget.share(structure, pruned), amount_of(budget)
    return [f"{share:.2%} of {counted} go with the units, {asked:.2%} asked"]


def _given_back(
    wanted: Mapping[str, Array], pruned: Mapping[str, Array], round_to: int, min_kept: int
) -> list[str]:
    """Say, and warn, where fewer units go than the budget takes."""
    notes = []
    for name, units in wanted.items():
        back = int(units.sum() - pruned[name].sum())
        why = f"to keep {min_kept}" if int((~units).sum()) < min_kept else f"to keep a multiple of {round_to}"
        if back:
            notes.append(f"{name}: {back} units stay that the budget would take, {why}")
    if notes:
        more = f"; and so in {len(notes) - 3} more groups" if len(notes) > 3 else ""
        warnings.warn("; ".join(notes[:3]) + more, SecateurWarning, stacklevel=5)
    return notes


def select_groups(
    structure: Structure,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    removable_only: bool = True,
) -> dict[str, Group]:
    """Return the groups with a parameter (or module, or name) that ``include`` matches and none that
    ``exclude`` does, without those that modules cannot lose unless these are asked for too. Raises
    TargetError for a pattern that matches no group, or where none is left."""
    chosen = dict(structure.groups)
    for which, patterns in (("include", include), ("exclude", exclude)):
        if patterns is None:
            continue
        if which == "include" and not patterns:
            raise TargetError("include is empty, so it names no group; leave it out to prune all of them")
        hit: set[str] = set()
        for pattern in as_patterns(which, patterns):
            found = {
                name
                for name, group in structure.groups.items()
                if name == pattern or any(matches(part.name, pattern) for part in _made(group))
            }
            if not found:
                raise TargetError(
                    f"{which} pattern {pattern!r} matches no group{_nameable(structure, pattern)}"
                )
            hit |= found
        chosen = {n: g for n, g in chosen.items() if (n in hit) == (which == "include")}
    if not chosen:
        left = " that the include and exclude patterns leave"
        why = left if include or exclude else "; print(structure) says why"
        raise TargetError(f"{type(structure.model).__name__} has no group of units to prune{why}")
    removable = {name: group for name, group in chosen.items() if name not in structure.stays}
    if removable_only and not removable:
        raise TargetError(
            f"{type(structure.model).__name__}: its modules can lose none of these groups "
            f"({structure.stays[next(iter(chosen))]}); prune them with removable_only=False and take them "
            "out with compact(..., form='graph'), on the command line with --graph"
        )
    return removable if removable_only else chosen


def _named(structure: Structure, budget: str, pattern: str) -> list[str]:
    """Return the groups that a pattern of a budget with amounts by pattern names."""
    try:
        return list(select_groups(structure, pattern, None, removable_only=False))
    except TargetError as error:
        raise BudgetError(f"{budget}: {pattern!r} matches no group{_nameable(structure, pattern)}") from error


def _nameable(structure: Structure, pattern: str) -> str:
    """Return the nearest groups, layers and parameters that a pattern could name, else the groups."""
    made = [part.name for group in structure.groups.values() for part in _made(group)]
    known = [*structure.groups, *made, *(name.rpartition(".")[0] for name in made)]
    close = difflib.get_close_matches(pattern, dict.fromkeys(known), cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(map(repr, close)) + "?"
    shown = " | ".join(list(structure.groups)[:12]) + (" | ..." if len(structure) > 12 else "")
    return f"; the groups: {shown}"


def _made(group: Group) -> list[Any]:
    """The parameters that make a unit; what reads it, where nothing does."""
    masked = [part for part in group.slices if part.masked]
    return [part for part in masked if not part.reads] or masked


def _scores(name: str, raw: Tensor | None, group: Group, earlier: Array) -> Scores:
    if not isinstance(raw, Tensor) or tuple(raw.shape) != (len(group),) or not raw.is_floating_point():
        raise CriterionError(
            f"{name}: the criterion gave no score for each of its {len(group)} units, as floats"
        )
    return Scores(name, (len(group),), raw.__getitem__, torch.from_numpy(earlier) if earlier.any() else None)


def already_pruned(
    structure: Structure, masks: Masks | None, model: nn.Module | None = None
) -> dict[str, Array]:
    """Return by group the units of which earlier masks leave nothing, or the zeros of ``model``."""
    kept: Mapping[str, Tensor] = {} if masks is None else masks.kept
    names = canonical_names(structure.model)
    weights = {} if model is None else canonical_parameters(model)

    def left(name: str) -> Tensor | None:
        name = names.get(name, name)
        weight, mask = weights.get(name), kept.get(name)
        return mask if weight is None else weight if mask is None else weight * mask

    return {name: all_zero(group, left) for name, group in structure.groups.items()}


def _rounded(wanted: Array, raw: Tensor, earlier: Array, round_to: int, min_kept: int) -> Array:
    """Give units back, the best first, until those kept are enough and a multiple of ``round_to``."""
    number = len(wanted)
    kept = int((~wanted).sum())
    goal = min(number, max(kept, min_kept))
    goal = min(number, -(-goal // round_to) * round_to)
    pruned = wanted.copy()
    best = [i for i in raw.argsort(descending=True, stable=True).tolist() if wanted[i] and not earlier[i]]
    pruned[best[: max(0, goal - kept)]] = False
    return pruned


def _masks(structure: Structure, pruned: Mapping[str, Array], earlier: Masks | None) -> dict[str, Tensor]:
    tensors = dict(parameters_of(structure.model))
    names = canonical_names(structure.model)
    kept = {} if earlier is None else {name: mask.clone() for name, mask in earlier.items()}
    for name, units in pruned.items():
        for part in structure.groups[name].slices:
            if part.masked and units.any():
                tensor = tensors[part.name]
                mask = kept.setdefault(names[part.name], torch.ones_like(tensor, dtype=torch.bool))
                index = torch.from_numpy(part.indices[units].reshape(-1)).to(mask.device)
                mask.index_fill_(part.dim, index, False)
    return kept
