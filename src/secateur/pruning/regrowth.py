"""Sparse from the start: the smallest living weights die, and as many dead ones come to life."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.errors import BudgetError, MaskError
from secateur.numeric import is_real, is_whole
from secateur.pruning.calibration import Batches, Loss, mean_gradients
from secateur.pruning.holding import Optimizers, levels_of
from secateur.pruning.masks import Masks
from secateur.pruning.targets import find_targets
from secateur.shards import refuse_sharded


@torch.no_grad()
def regrow(
    masks: Masks,
    share: float = 0.3,
    *,
    data: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    optimizer: Optimizers | None = None,
) -> int:
    """Let the smallest living weights of each masked tensor die and as many dead ones come to life, from
    zero; change the masks and their model, in place, and return how many moved. Each tensor keeps its count.

    Call it every so many steps of a training in which the masks are held, with a share that falls to 0: that
    is dynamic sparse training, and nothing dense is ever trained. What has just died stays dead this time.

    Args:
        masks: the masks, held or not.
        share: of the living weights of each tensor, from 0 to 1.
        data: batches of (inputs, labels): the dead weights with the largest gradient come to life (RigL), one
            pass over ``data``. Without them they are drawn at random (SET).
        loss: ``loss(outputs, labels)``; by default the model's own, or cross-entropy.
        seed: of the draw.
        optimizer: the one that trains, or a list: what it keeps of those weights (momentum) begins at zero.

    Returns:
        The number of weights that died, which is that of those that came to life.

    Raises:
        BudgetError: for an impossible share or seed.
        MaskError: for masks that do not fit, or of what is no target.
        CriterionError, NonFiniteError: where the data do not give gradients.

    Source:
        Evci et al., "Rigging the Lottery" (ICML 2020); Mocanu et al., "Scalable training of artificial neural
        networks with adaptive sparse connectivity" (Nature Communications 2018).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(10, 10)
        >>> masks = sc.prune(layer, sc.Random(), sc.Uniform(0.9))
        >>> sc.regrow(masks, share=0.5)
        5
        >>> masks.sparsity
        0.9
    """
    if not (is_real(share) and 0 <= share <= 1):
        raise BudgetError(f"share is {share!r}; it is a share of the living weights, from 0 to 1")
    if not is_whole(seed):
        raise BudgetError(f"seed is {seed!r}; it is a whole number")
    refuse_sharded(masks.model, "regrow")
    weights, scores = masks.parameters(), _wanted(masks, data, loss, seed)
    kept: dict[str, Tensor] = {}
    moved = 0
    for name, weight in weights.items():
        living = masks[name].to(weight.device)
        number = min(round(share * int(living.sum())), int((~living).sum()))
        dying = _least(weight.abs(), living, number)
        born = _least(-scores[name].to(weight.device), ~living, number)
        kept[name] = (living & ~dying) | born
        weight.masked_fill_(dying | born, 0)
        for state in _states(optimizer, weight):
            state.masked_fill_(dying | born, 0)
        moved += number
    masks.kept = kept  # what holds them sees that they are others
    return moved


def _wanted(masks: Masks, data: Batches | None, loss: Loss | None, seed: int) -> dict[str, Tensor]:
    """Return by tensor how much each weight is wanted to live."""
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    targets = find_targets(masks.model, include=list(masks)) if len(masks) else {}
    if missing := [name for name in masks if name not in targets]:
        raise MaskError(f"{missing[0]}: is no target, so that it has no gradient to grow by")
    gradients = mean_gradients(targets, data, loss, "regrow")  # type: ignore[arg-type]
    return {name: gradients[name].abs() for name in masks}


def _least(scores: Tensor, among: Tensor, number: int) -> Tensor:
    """Return the mask of the ``number`` lowest scores ``among`` some entries; ties go by position."""
    order = scores.masked_fill(~among, torch.inf).flatten().argsort(stable=True)
    chosen = torch.zeros_like(among).flatten()
    chosen[order[:number]] = True
    return chosen.reshape(among.shape)


def _states(optimizer: Any, weight: Tensor) -> list[Tensor]:
    """Return what optimizers keep for each entry of a weight."""
    states = (
        [] if optimizer is None else [getattr(level.optimizer, "state", {}) for level in levels_of(optimizer)]
    )
    return [
        value
        for state in states
        for value in (state.get(weight) or {}).values()
        if isinstance(value, Tensor) and value.shape == weight.shape
    ]
