"""Blocks cut alike: groups at like places of like blocks, of which each loses as many units as the others.

A configuration has one number for all its blocks. The budget sees one group for each kind, whose i-th score
is the mean of the i-th lowest of the groups that it stands for; which units go is each group's own affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from secateur.errors import MaskError
from secateur.pruning.selection import AnyCut, Scores
from secateur.structure.labels import Array
from secateur.structure.units import Group

Kinds = dict[str, list[str]]
"""By the name of its first group: the names of all groups of a kind."""


def kinds_of(groups: Mapping[str, Group]) -> Kinds:
    """Return the groups by kind: those of the same number of units in the same dims of the same tensors, but
    for the numbers in the names of these."""
    first: dict[tuple[int, tuple[tuple[str, int], ...]], str] = {}
    kinds: Kinds = {}
    for name, group in groups.items():
        places = tuple(sorted((re.sub(r"\d+", "*", part.name), part.dim) for part in group.slices))
        kinds.setdefault(first.setdefault((len(group), places), name), []).append(name)
    return kinds


def one_for_each(kinds: Kinds, scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return the scores of the group that stands for each kind, the lowest first."""
    found: dict[str, Scores] = {}
    for first, names in kinds.items():
        ranked = torch.stack([scores[name].whole().sort().values.cpu() for name in names])
        gone = ranked == -torch.inf  # of what is masked
        masked = gone.all(0)
        mean = ranked.double().masked_fill(gone, torch.nan).nanmean(0).to(ranked.dtype)
        mean[masked] = 0
        found[first] = Scores(first, tuple(mean.shape), mean.__getitem__, masked if masked.any() else None)
    return found


def taken_alike(
    kinds: Kinds,
    cuts: Mapping[str, AnyCut],
    ones: Mapping[str, Scores],
    scores: Mapping[str, Scores],
) -> dict[str, Array]:
    """Return by group which units go: of each group of a kind, its lowest, as many as the cut takes."""
    taken: dict[str, Array] = {}
    for first, names in kinds.items():
        number = int(cuts[first].pruned(ones[first]).sum())
        for name in names:
            if scores[name].number_masked > number:
                raise MaskError(
                    f"{name}: {scores[name].number_masked} units are masked already and the budget takes "
                    f"{number} of each group of its kind; ask for at least as much, or prune without masks="
                )
            taken[name] = _lowest(scores[name], number)
    return {name: taken[name] for name in scores}


def _lowest(scores: Scores, number: int) -> Array:
    pruned = torch.zeros(scores.numel, dtype=torch.bool)
    pruned[scores.whole().cpu().sort(stable=True).indices[:number]] = True
    return pruned.numpy()


def requested_of(kinds: Kinds, cuts: Mapping[str, AnyCut]) -> dict[str, float]:
    """Return by group the share that was asked for, where one was."""
    shares: Sequence[tuple[list[str], float | None]] = [(kinds[n], cut.requested) for n, cut in cuts.items()]
    return {name: share for names, share in shares if share is not None for name in names}
