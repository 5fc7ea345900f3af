"""Which blocks of a folder's network go whole: by what they change, or by the perplexity without each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree

from secateur.errors import BudgetError
from secateur.large.configuring import Kept, lists_of
from secateur.large.mapped import Mapped, mapped
from secateur.large.ranks import Ranks
from secateur.large.walk import Walk

Told = Callable[[int, int, str], None]


def removable(opened: Mapped, blocks: Sequence[str]) -> list[str]:
    """Return the blocks that another of their list can stand in for: those that have the same tensors as most
    of it, and as the next, whose number each takes when it is gone."""
    shapes = {
        path: {n: tuple(t.shape) for n, t in opened.model.get_submodule(path).state_dict().items()}
        for path in blocks
    }
    found: list[str] = []
    for place, numbers in lists_of(blocks).items():
        own = [shapes[f"{place}.{number}"] for number in numbers]
        found += [
            f"{place}.{number}"
            for number, one in zip(numbers, own, strict=True)
            if own.count(one) > len(own) / 2
        ]
    return found


def kept_without(blocks: Sequence[str], gone: Sequence[str]) -> Kept:
    return lists_of([path for path in blocks if path not in gone])


@torch.no_grad()
def by_influence(walk: Walk, share: float, tell: Told, ranks: Ranks) -> list[str]:
    """Return the blocks that change least what passes through them: 1 - mean cos(x in, x out) over tokens, of
    all ranks."""
    influence: dict[str, float] = {}
    for number, path in enumerate(walk.blocks):
        tell(number, len(walk.blocks), f"{path}: what it changes")
        walk.reach(path)
        block = walk.opened.block(path)
        total, count = 0.0, 0
        for call in walk.inputs(path):
            before, after = _first(call), _first(block(**call))
            cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            total, count = total + float(cosines.sum(dtype=torch.float64)), count + cosines.numel()
        told = ranks.gather((total, count))
        influence[path] = 1 - sum(part for part, _ in told) / sum(number for _, number in told)
        walk.put(path, block)
    able = removable(walk.opened, walk.blocks)
    number = number_of(share, walk.blocks, able)
    return sorted(able, key=influence.__getitem__)[:number]


def by_perplexity(
    folder: Path,
    blocks: Sequence[str],
    able: Sequence[str],
    share: float,
    perplexity: Callable[[Mapped], float],
    tell: Told,
    *,
    remote_code: bool = False,
) -> list[str]:
    """Return the blocks without which the perplexity is lowest, found one after the other."""
    gone: list[str] = []
    for step in range(number := number_of(share, blocks, able)):
        tell(step, number, "the perplexity without each block")
        found: dict[str, float] = {}
        for path in able:
            if path not in gone:
                kept = kept_without(blocks, [*gone, path])
                with mapped(folder, remote_code=remote_code, kept=kept) as opened:
                    found[path] = perplexity(opened)
        gone.append(min(found, key=found.__getitem__))
    return gone


def number_of(share: float, blocks: Sequence[str], able: Sequence[str]) -> int:
    number = round(share * len(blocks))
    spared = len(lists_of(blocks))
    if number > len(able) - spared:
        raise BudgetError(
            f"blocks={share:g} takes {number} of {len(blocks)}, of which {max(len(able) - spared, 0)} can go"
        )
    return number


def _first(value: object) -> Tensor:
    return next(t for t in _pytree.tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point())
