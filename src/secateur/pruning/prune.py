"""``prune``: targets, scores, cuts, shrinkage, masks, in that order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.copying import check_network
from secateur.errors import BudgetError, SecateurWarning
from secateur.numeric import is_whole
from secateur.pruning.budgets import Budget
from secateur.pruning.calibration import Batches, Loss
from secateur.pruning.capabilities import name_of, requested_share, says
from secateur.pruning.choices import check
from secateur.pruning.criteria import Criterion, check_telling
from secateur.pruning.entries import (
    already_masked,
    check_room,
    gathered_by,
    said_of,
    scored,
    taken,
    zeroed_in,
)
from secateur.pruning.given import cannot_spoil, check_cuts, put_back
from secateur.pruning.holding import check_writable
from secateur.pruning.in_order import cuts_in_order
from secateur.pruning.masks import Masks
from secateur.pruning.parts import parts_of
from secateur.pruning.ranks import together
from secateur.pruning.selection import AnyCut, Cut, Scores, on_threads
from secateur.pruning.shrinkage import Hard, Shrinkage
from secateur.pruning.structured import UnitBudget, prune_units
from secateur.pruning.targets import Targets, check_computed_weights, find_targets
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.shards import as_sharded, count, local, refuse_sharded
from secateur.structure.units import Structure


@dataclass(frozen=True)
class Block:
    """A granularity: whole blocks of ``height`` x ``width`` go together, by their mean score.

    Weights are read as matrices (outputs, everything else); blocks at the border may be smaller.

    Args:
        height: how many outputs a block has, from 1.
        width: how many inputs (times positions of a kernel) it has, from 1.

    Raises:
        BudgetError: for a side under 1.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[9.0, 0.0, 3.0, 3.0], [0.0, 0.0, 3.0, 3.0]])
        >>> sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5), granularity=sc.Block(2, 2))["weight"]
        tensor([[False, False,  True,  True],
                [False, False,  True,  True]])
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if not all(is_whole(side) and side >= 1 for side in (self.height, self.width)):
            raise BudgetError(f"Block({self.height!r}, {self.width!r}): both sides count from 1")

    def gather(self, scores: Scores) -> Scores:
        """Return the scores of the blocks, from the scores of their entries."""
        height, width = scores.shape[0], scores.numel // scores.shape[0]
        size = self.height, self.width

        def rows(blocks: slice) -> Tensor:
            inside = slice(blocks.start * self.height, min(blocks.stop * self.height, height))
            matrix = scores.rows(inside).reshape(-1, width)
            return torch.nn.functional.avg_pool2d(matrix[None].float(), size, ceil_mode=True)[0]

        shape = (-(-height // self.height), -(-width // self.width))
        masked = None
        if scores.masked is not None:
            alive = (~scores.masked).reshape(1, height, width).float()
            masked = torch.nn.functional.max_pool2d(alive, size, ceil_mode=True)[0] == 0
        return Scores(scores.name, shape, rows, masked)

    def spread(self, pruned: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return which entries are pruned, from which blocks are."""
        wide = pruned.repeat_interleave(self.height, 0).repeat_interleave(self.width, 1)
        return wide[: shape[0], : shape.numel() // shape[0]].reshape(shape)  # type: ignore[attr-defined]


@torch.no_grad()
def prune(
    model: nn.Module,
    criterion: Criterion | UnitCriterion,
    budget: Budget | UnitBudget,
    *,
    shrinkage: Shrinkage | None = None,
    granularity: Block | None = None,
    data: Batches | None = None,
    loss: Loss | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    masks: Masks | None = None,
    structure: Structure | None = None,
    round_to: int = 1,
    min_kept: int = 1,
    removable_only: bool = True,
    alike: bool = False,
    group: Any = None,
) -> Masks:
    """Zero the least important weights of ``model`` in place and return what was zeroed. Every cut is decided
    before the first weight changes, so an error leaves the model as it was.

    With ``structure`` whole units (neurons, filters, heads) go: the criterion ranks units (L2Norm,
    ActivationNorm, ..., or the sum of single weights' scores, which favours large units where groups are
    compared), and the budget counts them (ParameterShare counts their parameters). Units given back for
    ``min_kept`` or ``round_to`` are noted and warned of.

    Where a process group is up and its ranks hold the same network, all of them call this: what criteria read
    is added up over them. They may hold parts of it (``fully_shard``, DTensors): the masks are sharded alike,
    and are those of one process that holds the whole.

    Args:
        model: the network.
        criterion: what ranks weights or units; low scores go first.
        budget: how much goes, and from where.
        shrinkage: what becomes of a weight at the cut; default ``secateur.Hard``.
        granularity: a ``Block``, for whole blocks instead of single weights.
        data: batches, for criteria that read them.
        loss: ``loss(outputs, labels)``, for criteria that read one; default cross-entropy.
        include: name patterns of what is pruned, see ``secateur.find_targets``; of groups with
            ``structure``.
        exclude: name patterns of what is not.
        masks: an earlier pruning of this model; what it masks goes first and stays masked.
        structure: a ``secateur.trace`` of this model, for whole units.
        round_to: what the number of units left in a pruned group is a multiple of.
        min_kept: how many units every group keeps.
        removable_only: leave the groups of ``structure.stays`` alone, which modules cannot lose, so that
            their zeros would bring nothing. With False they are zeroed too, for
            ``compact(..., form="graph")``.
        alike: take as many units from each of the groups that stand at like places of like blocks, so that
            one number of a configuration says it: each loses its own lowest, and the budget compares the
            means of their ranked scores. With ``structure``.
        group: another process group than the model's, or False for a process that prunes on its own.

    Returns:
        The masks, bound to the model: by parameter name a bool tensor of its shape, True where it is kept.

    Raises:
        CriterionError, BudgetError: for choices that do not go together, see ``check``, or cannot be met.
        TargetError: where patterns match nothing, or nothing can be pruned.
        MaskError: for masks of another network, or of more than the budget takes; for ranks that differ.
        NonFiniteError: for a NaN or an infinity in weights or scores.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> masks = sc.prune(model, sc.Magnitude(), sc.Global(0.75))
        >>> masks.sparsity, sc.sparsity(model)
        (0.75, 0.75)
        >>> structure = sc.trace(model, torch.randn(2, 8))
        >>> sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure).units
        {'0 -> 2': (8, 16)}
    """
    check_network(model)
    check(
        criterion, budget, shrinkage=shrinkage, granularity=granularity, units=structure is not None,
        round_to=round_to, min_kept=min_kept, alike=alike,
    )  # fmt: skip
    if structure is not None:
        refuse_sharded(model, "structure=")
        with together(model, group):
            return prune_units(
                structure, model, criterion, budget, data=data, loss=loss, include=include, exclude=exclude,
                masks=masks, round_to=round_to, min_kept=min_kept, removable_only=removable_only,
                alike=alike,
            )  # fmt: skip
    shrinkage = shrinkage or Hard()
    with together(model, group) as peers:
        targets = find_targets(model, include, exclude)
        weights = {name: t.weight for name, t in targets.items()}
        parts = parts_of(weights, peers)
        check_writable({name: local(weight) for name, weight in weights.items()})
        earlier = already_masked(masks, targets, model)
        if says(criterion, "sequential"):
            refuse_sharded(model, f"{name_of(criterion)} in running order")
            scores = {n: Scores(n, tuple(w.shape), w.__getitem__, earlier.get(n)) for n, w in weights.items()}
            cuts, pruned = cuts_in_order(
                cast(Any, criterion), cast(Any, budget), targets, data, earlier, peers
            )
        else:
            scores = scored(cast(Criterion, criterion), targets, data, loss, earlier, parts)
            check_telling(criterion, list(scores.values()), data, loss)
            entries = {
                n: s if granularity is None else gathered_by(granularity, s) for n, s in scores.items()
            }
            cuts = check_cuts(budget, cast(Budget, budget)(entries, weights), targets)
            with on_threads(1):
                pruned = {n: taken(cuts[n], entries[n], scores[n], granularity) for n in targets}
        for name, masked in earlier.items():
            check_room(scores[name], pruned[name], masked, cuts[name])
        check_computed_weights(targets, pruned)
        peers.compare({n: said_of(cuts[n]) if n in parts else mask for n, mask in pruned.items()})

    kept: dict[str, Tensor] = {}
    own = {} if cannot_spoil(shrinkage) else {name: local(weight) for name, weight in weights.items()}
    with on_threads(1), put_back(own):
        for name, weight in weights.items():
            if name in earlier:
                local(weight).masked_fill_(earlier[name], 0)
            zeroed = zeroed_in(scores[name], shrinkage, local(weight), pruned.pop(name), cuts[name])
            left = zeroed.logical_not_()
            if name in earlier:
                left &= ~earlier[name]
            kept[name] = as_sharded(left, weight)
        if masks is not None:
            kept |= {name: mask for name, mask in masks.items() if name not in kept}
        notes = _notes(kept, targets, cuts)
    return Masks(
        model,
        kept,
        requested={n: c.requested for n, c in cuts.items() if c.requested is not None},
        requested_overall=requested_share(budget),
        notes=notes,
    )


def _notes(kept: dict[str, Tensor], targets: Targets, cuts: Mapping[str, AnyCut]) -> tuple[str, ...]:
    emptied = [n for n, mask in kept.items() if mask.numel() and not count(mask)]  # any() is slow
    notes = [f"{name} is emptied: the layer puts out nothing but its bias" for name in emptied]
    for note in notes:
        warnings.warn(note, SecateurWarning, stacklevel=4)
    frozen = [name for name, target in targets.items() if not target.weight.requires_grad]
    notes += [f"{name} is pruned though it is frozen: retraining cannot make up for it" for name in frozen]
    return (*notes, *notes_of(targets, cuts))


def notes_of(targets: Targets, cuts: Mapping[str, AnyCut]) -> tuple[str, ...]:
    """Return lines on what was not pruned, and why."""
    notes: list[str] = []
    by_reason: dict[str, list[str]] = {}
    dense = {name: cut.note for name, cut in cuts.items() if isinstance(cut, Cut) and cut.note}
    for name, reason in (targets.protected | dense).items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        notes.append(f"not pruned: {shown} ({reason})")
    return tuple(notes)
