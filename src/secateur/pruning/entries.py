"""What is ranked and what of it goes: the scores of every target, whole or this process's part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.errors import CriterionError, MaskError
from secateur.pruning.capabilities import name_of
from secateur.pruning.criteria import Criterion, Rows
from secateur.pruning.given import cannot_spoil, check_scores, scores_given, zeroed_by
from secateur.pruning.masks import Masks
from secateur.pruning.parts import Part
from secateur.pruning.selection import AnyCut, Cut, Scores
from secateur.pruning.shrinkage import Shrinkage
from secateur.pruning.targets import Target, Targets
from secateur.shards import fitted, local
from secateur.text import nearest


class Granularity(Protocol):
    """What gathers the scores of entries to those of blocks, and spreads what is pruned back."""

    def gather(self, scores: Scores) -> Scores: ...
    def spread(self, pruned: Tensor, shape: tuple[int, ...]) -> Tensor: ...


def already_masked(masks: Masks | None, targets: Targets, model: nn.Module) -> dict[str, Tensor]:
    """Return by name what of each target is masked already."""
    if masks is None:
        return {}
    masks = masks.bind(model)
    return {n: ~fitted(masks[n], t.weight) for n, t in targets.items() if n in masks}


def scored(
    criterion: Criterion,
    targets: Targets,
    data: Any,
    loss: Any,
    earlier: dict[str, Tensor],
    parts: Mapping[str, Part] | None = None,
) -> dict[str, Scores]:
    """Return the scores of every target by name, as a criterion gives them; ``parts`` of those that are
    sharded."""
    weights = {name: local(target.weight) for name, target in targets.items()}
    raw = scores_given(criterion, criterion, weights, targets, data, loss)
    missing = [name for name in targets if name not in raw]
    if missing:
        raise CriterionError(
            f"{name_of(criterion)} gave no scores for {missing[0]!r}{nearest(missing[0], raw)}"
        )
    found = {}
    for name, target in targets.items():
        check_scores(criterion, name, raw[name], tuple(target.weight.shape), tuple(weights[name].shape))
        found[name] = _scores(name, target, raw[name], earlier.get(name), (parts or {}).get(name))
    return found


def _scores(
    name: str, target: Target, raw: Tensor | Rows, masked: Tensor | None, part: Part | None
) -> Scores:
    shape = tuple(target.weight.shape)
    rows = fitted(raw, target.weight).__getitem__ if isinstance(raw, Tensor) else raw
    return Scores(name, shape, rows, masked, target.input_dim, part)


def gathered_by(granularity: Granularity, scores: Scores) -> Scores:
    """Return the scores of blocks; of a sharded tensor every process ranks all of them, which are few."""
    if scores.part is None:
        return granularity.gather(scores)
    whole = scores.whole()
    masked = None if scores.masked is None else scores.gathered(scores.masked)
    blocks = granularity.gather(replace(scores, rows=whole.__getitem__, masked=masked, part=None))
    return replace(blocks, rows=blocks.whole().__getitem__)  # so that the whole is held no longer


def taken(cut: AnyCut, entries: Scores, scores: Scores, granularity: Granularity | None) -> Tensor:
    """Return which entries go, of those that this process holds."""
    pruned = cut.pruned(entries)
    return pruned if granularity is None else scores.own(granularity.spread(pruned, torch.Size(scores.shape)))


def said_of(cut: AnyCut) -> Tensor:
    """Return a cut as bytes, by which processes that hold different parts see that they cut alike."""
    return torch.tensor(list(repr(cut).encode()), dtype=torch.uint8)


def check_room(scores: Scores, pruned: Tensor, earlier: Tensor, cut: AnyCut) -> None:
    """Raise MaskError where more is masked already than a cut takes."""
    value_cut = isinstance(cut, Cut) and cut.ties is None
    number, already = (scores.total(int(some.count_nonzero())) for some in (pruned, earlier))
    if not value_cut and already > number:
        raise MaskError(
            f"{scores.name}: {already} weights are masked already and the budget takes {number}; "
            "ask for at least as much as before, or prune without masks="
        )


def zeroed_in(scores: Scores, shrinkage: Shrinkage, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor:
    """Let a shrinkage change what this process holds of a weight, and return what it zeroed of that.

    It sees the whole weight, since it may read more of it than what it zeroes.
    """
    if scores.part is None or cannot_spoil(shrinkage):
        return zeroed_by(shrinkage, scores.name, weight, pruned, cut)
    whole = scores.gathered(weight)
    zeroed = zeroed_by(shrinkage, scores.name, whole, scores.gathered(pruned), cut)
    weight.copy_(scores.own(whole))
    return scores.own(zeroed)
