"""``prune``: targets, scores, cuts, shrinkage, masks, in that order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, CriterionError, MaskError, SecateurWarning, TargetError
from secateur.pruning.budgets import NM, Budget, MagnitudeRatios, Std
from secateur.pruning.calibration import Batches, Loss
from secateur.pruning.criteria import Criterion, Magnitude, Rows, check_telling
from secateur.pruning.masks import Masks, check_writable
from secateur.pruning.ranks import together
from secateur.pruning.selection import Cut, PatternCut, Scores, one_thread
from secateur.pruning.shrinkage import Hard, Shrinkage
from secateur.pruning.structured import ParameterShare, prune_units
from secateur.pruning.targets import Target, Targets, check_finite_weights, find_targets
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.structure.units import Structure
from secateur.text import nearest


@dataclass(frozen=True)
class Block:
    """A granularity: whole blocks of ``height`` x ``width`` go together, by their mean score.

    Weights are read as matrices (outputs, everything else); blocks at the border may be smaller.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise BudgetError(f"Block({self.height}, {self.width}): both sides count from 1")

    def gather(self, scores: Scores) -> Scores:
        """Return the scores of the blocks, from the scores of their entries."""
        height, width = scores.shape[0], scores.numel // scores.shape[0]

        def rows(blocks: slice) -> Tensor:
            inside = slice(blocks.start * self.height, min(blocks.stop * self.height, height))
            matrix = scores.rows(inside).reshape(-1, width)
            return torch.nn.functional.avg_pool2d(
                matrix[None].float(), (self.height, self.width), ceil_mode=True
            )[0]

        shape = (-(-height // self.height), -(-width // self.width))
        masked = None
        if scores.masked is not None:
            alive = (~scores.masked).reshape(1, height, width).float()
            masked = torch.nn.functional.max_pool2d(alive, (self.height, self.width), ceil_mode=True)[0] == 0
        return Scores(scores.name, shape, rows, masked)

    def spread(self, doomed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return which entries go, from which blocks go."""
        wide = doomed.repeat_interleave(self.height, 0).repeat_interleave(self.width, 1)
        return wide[: shape[0], : shape.numel() // shape[0]].reshape(shape)  # type: ignore[attr-defined]


@torch.no_grad()
def prune(
    model: nn.Module,
    criterion: Criterion | UnitCriterion,
    budget: Budget | ParameterShare,
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
    group: Any = None,
) -> Masks:
    """Zero the least important weights of ``model`` in place and return what was zeroed.

    ``masks``: an earlier pruning of this model; what it masks goes first and stays masked.
    ``include``, ``exclude``: name patterns, see :func:`secateur.find_targets`. ``data``, ``loss``:
    for criteria that read them. Every cut is decided before the first weight changes, so an
    error leaves the model as it was.

    ``structure``: a :func:`secateur.trace` of this model; then whole units (neurons, filters, heads) go:
    the criterion ranks units (L2Norm, ActivationNorm, ..., or the sum of single weights' scores, which
    favours large units where groups are compared), the budget counts them (ParameterShare counts their
    parameters), ``include`` and ``exclude`` choose groups, every group keeps ``min_kept`` units, and a
    multiple of ``round_to`` where it is pruned; units given back for either are noted and warned of.

    Where a process group is up and its ranks hold the same network, all of them call this: what criteria
    read is added up over them, and MaskError names a tensor that they would mask differently. ``group``:
    another process group than the model's, or False for a process that prunes on its own.

    >>> masks = prune(model, Magnitude(), Global(0.9))      # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise TargetError(f"model is {model!r}; it is a network, an instance of torch.nn.Module")
    if structure is not None:
        _check_choices(criterion, budget, None)
        if shrinkage is not None or granularity is not None:
            raise BudgetError(
                "neither a shrinkage nor a granularity goes with structure=: whole units are masked"
            )
        with together(model, group):
            return prune_units(
                structure, model, criterion, budget, data=data, loss=loss, include=include, exclude=exclude,
                masks=masks, round_to=round_to, min_kept=min_kept,
            )  # fmt: skip
    _check_choices(criterion, budget, granularity)
    if getattr(criterion, "whole_units", False):
        raise CriterionError(
            f"{type(criterion).__name__} ranks whole units: pass structure=trace(model, example_inputs)"
        )
    if isinstance(budget, ParameterShare):
        raise BudgetError("ParameterShare counts whole units: pass structure=; Global does it for weights")
    if (round_to, min_kept) != (1, 1):
        raise BudgetError(
            "round_to= and min_kept= count whole units: pass structure=trace(model, example_inputs)"
        )
    shrinkage = shrinkage or Hard()
    if not isinstance(shrinkage, Hard) and not isinstance(criterion, Magnitude):
        raise BudgetError(
            f"{type(shrinkage).__name__} reads the size of the weights, so it goes with Magnitude "
            f"alone, not with {type(criterion).__name__}"
        )
    if not isinstance(shrinkage, Hard) and granularity is not None:
        raise BudgetError(f"{type(shrinkage).__name__} works on single weights, not on blocks")
    with together(model, group) as peers:
        targets = find_targets(model, include, exclude)
        check_writable({name: t.weight for name, t in targets.items()})
        gone = _already_masked(masks, targets, model)
        scores = _scored(cast(Criterion, criterion), targets, data, loss, gone)
        check_telling(criterion, list(scores.values()), data, loss)
        entries = scores if granularity is None else {n: granularity.gather(s) for n, s in scores.items()}
        cuts = budget(entries, {name: t.weight for name, t in targets.items()})
        _check_shrinkage(shrinkage, cuts)
        with one_thread():
            doomed = {name: _doomed(t, cuts[name], entries[name], granularity) for name, t in targets.items()}
        for name, masked in gone.items():
            _check_room(name, doomed[name], masked, cuts[name])
        check_finite_weights(targets, doomed)
        peers.compare(doomed)

    kept: dict[str, Tensor] = {}
    with one_thread():
        for name, target in targets.items():
            if name in gone:
                target.weight.masked_fill_(gone[name], 0)
            kept[name] = shrinkage(target.weight, doomed.pop(name), cuts[name]).logical_not_()
            if name in gone:
                kept[name] &= ~gone[name]
        if masks is not None:
            kept |= {name: mask for name, mask in masks.items() if name not in kept}
        notes = _notes(kept, targets)
    return Masks(
        model,
        kept,
        requested={n: c.requested for n, c in cuts.items() if c.requested is not None},
        requested_overall=_requested_overall(budget),
        notes=notes,
    )


def _doomed(target: Target, cut: Cut | PatternCut, scores: Scores, granularity: Block | None) -> Tensor:
    doomed = cut.doomed(scores)
    return doomed if granularity is None else granularity.spread(doomed, target.weight.shape)


def _check_choices(criterion: Any, budget: Any, granularity: Any) -> None:
    order = "prune(model, criterion, budget) takes the criterion first"
    if hasattr(type(criterion), "amount"):
        raise CriterionError(f"criterion is {criterion}, a budget; {order}")
    if isinstance(criterion, type) or not callable(criterion):
        raise CriterionError(f"criterion is {criterion!r}; it is an instance, like Magnitude()")
    if type(budget).__module__ in (Magnitude.__module__, UnitCriterion.__module__):
        raise BudgetError(f"budget is {budget}, a criterion; {order}")
    if isinstance(budget, type) or not callable(budget):
        raise BudgetError(f"budget is {budget!r}; it is an instance, like Global(0.9)")
    if granularity is not None and not isinstance(granularity, Block):
        raise BudgetError(f"granularity is {granularity!r}; it is a Block, like Block(4, 4)")
    if granularity is not None and isinstance(budget, (NM, MagnitudeRatios)):
        raise BudgetError(f"{type(budget).__name__} counts single weights, so it does not go with blocks")
    if isinstance(budget, Std) and not isinstance(criterion, Magnitude):
        raise BudgetError(
            f"Std compares scores with the deviation of the weights, so it goes with Magnitude alone, "
            f"not with {type(criterion).__name__}"
        )


def _already_masked(masks: Masks | None, targets: Targets, model: nn.Module) -> dict[str, Tensor]:
    if masks is None:
        return {}
    if masks.model is not model:
        masks = masks.bind(model)
    return {n: ~masks[n].to(t.weight.device) for n, t in targets.items() if n in masks}


def _scored(
    criterion: Criterion, targets: Targets, data: Any, loss: Any, gone: dict[str, Tensor]
) -> dict[str, Scores]:
    raw = criterion(targets, data, loss)
    missing = [name for name in targets if name not in raw]
    if missing:
        raise CriterionError(
            f"{type(criterion).__name__} gave no scores for {missing[0]!r}{nearest(missing[0], raw)}"
        )
    return {name: _scores(name, t, raw[name], gone.get(name)) for name, t in targets.items()}


def _scores(name: str, target: Target, raw: Tensor | Rows, masked: Tensor | None) -> Scores:
    shape = tuple(target.weight.shape)
    rows = raw.__getitem__ if isinstance(raw, Tensor) else raw
    if isinstance(raw, Tensor) and tuple(raw.shape) != shape:
        raise CriterionError(f"{name}: the scores have shape {tuple(raw.shape)}, the weight {shape}")
    return Scores(name, shape, rows, masked, target.input_dim)


def _check_shrinkage(shrinkage: Shrinkage, cuts: Any) -> None:
    """Let the shrinkage refuse the cuts on a scrap of memory, before any weight has changed."""
    for cut in cuts.values():
        shrinkage(torch.zeros(1), torch.ones(1, dtype=torch.bool), cut)


def _check_room(name: str, doomed: Tensor, gone: Tensor, cut: Cut | PatternCut) -> None:
    value_cut = isinstance(cut, Cut) and cut.ties is None
    number, already = int(doomed.count_nonzero()), int(gone.count_nonzero())
    if not value_cut and already > number:
        raise MaskError(
            f"{name}: {already} weights are masked already and the budget takes {number}; "
            "ask for at least as much as before, or prune without masks="
        )


def _requested_overall(budget: Budget) -> float | None:
    share = getattr(budget, "sparsity", None)
    return share if isinstance(share, (int, float)) else None


def _notes(kept: dict[str, Tensor], targets: Targets) -> tuple[str, ...]:
    emptied = [n for n, mask in kept.items() if mask.numel() and not mask.count_nonzero()]  # any() is slow
    notes = [f"{name} is emptied: the layer puts out nothing but its bias" for name in emptied]
    for note in notes:
        warnings.warn(note, SecateurWarning, stacklevel=4)
    frozen = [name for name, target in targets.items() if not target.weight.requires_grad]
    notes += [f"{name} is pruned though it is frozen: retraining cannot make up for it" for name in frozen]
    by_reason: dict[str, list[str]] = {}
    for name, reason in targets.protected.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        notes.append(f"not pruned: {shown} ({reason})")
    return tuple(notes)
