"""How a number of entries is shared out over tensors, and the cuts that take as many from each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from secateur.errors import BudgetError, NonFiniteError
from secateur.pruning.selection import Cut, Scores, count_below, cut_globally

AllScores = Mapping[str, Scores]


def cut_keeping(scores: AllScores, count: int, min_kept: int) -> dict[str, Cut]:
    """Return the cuts that take the ``count`` lowest scores of all tensors together and leave each
    ``min_kept`` entries (all, where it has no more): what one may not give is taken elsewhere."""
    room = {name: max(0, s.numel - min_kept) for name, s in scores.items()}
    if count > sum(room.values()):
        raise BudgetError(
            f"{count} entries should go, and min_kept={min_kept} leaves only {sum(room.values())} that may"
        )
    fixed: dict[str, Cut] = {}
    while True:
        free = [s for name, s in scores.items() if name not in fixed]
        left = count - sum(room[name] for name in fixed)
        cuts = cut_globally(free, left) if free else {}
        over = [s for s in free if count_below(s, cuts[s.name]) > room[s.name]] if min_kept else []
        if not over:
            return {name: (fixed | cuts)[name] for name in scores}
        for s in over:
            fixed |= cut_globally([s], room[s.name])


def cut_as_many(scores: AllScores, others: Iterable[Scores], cuts: Mapping[str, Cut]) -> dict[str, Cut]:
    """Return the cuts that take from each tensor as many entries as ``cuts`` take by other scores."""
    return {s.name: cut_count(scores[s.name], count_below(s, cuts[s.name])) for s in others}


def cut_share(scores: Scores, share: float) -> Cut:
    return cut_count(scores, round(share * scores.numel), share)


def cut_count(scores: Scores, count: int, share: float | None = None) -> Cut:
    cut = cut_globally([scores], count)[scores.name]
    return replace(cut, requested=share)


def share_out(number: int, weights: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, int]:
    """Share ``number`` out in proportion to ``weights``, none over its size, to the last one."""
    full: dict[str, int] = {}
    while True:
        open_weights = {n: w for n, w in weights.items() if n not in full}
        left = number - sum(full.values())
        scale = left / sum(open_weights.values()) if open_weights else 0.0
        over = {n: sizes[n] for n, w in open_weights.items() if w * scale > sizes[n]}
        if not over:
            break
        full |= over
    exact = {n: w * scale for n, w in open_weights.items()}
    shares = {n: math.floor(e) for n, e in exact.items()}
    missing = left - sum(shares.values())
    for name in sorted(exact, key=lambda n: shares[n] - exact[n])[:missing]:
        shares[name] += 1
    return full | shares


def lamp_scores(scores: Scores) -> Tensor:
    flat = scores.whole().reshape(-1).float()
    if not torch.isfinite(flat[flat != -torch.inf]).all():
        raise NonFiniteError(f"{scores.name}: its weights or scores hold a NaN or an infinity")
    values, order = flat.sort(stable=True)
    squares = values.clamp(min=0).double().square()
    at_least = squares.flip(0).cumsum(0).flip(0)
    lamp = torch.where(at_least > 0, squares / at_least.clamp(min=1e-300), 0).float()
    lamp[values == -torch.inf] = -1.0
    return torch.empty_like(lamp).scatter_(0, order, lamp).reshape(scores.shape)
