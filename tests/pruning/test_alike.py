"""``alike``: like groups of like blocks lose as many units each, whatever their scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, MaskError

X = torch.ones(2, 4)


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width, bias=False), nn.Linear(width, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def blocks(*scores: list[float]) -> tuple[nn.Module, sc.Structure]:
    """Blocks of one kind; the norm of unit i of block b is ``scores[b][i]``."""
    net = nn.Sequential(*(Branch(len(row)) for row in scores))
    for branch, row in zip(net, scores, strict=True):
        branch.down.weight.data.fill_(1.0)
        branch.up.weight.data = torch.tensor(row)[:, None] * torch.tensor([1.0, 0, 0, 0])
    return net, sc.trace(net, X)


def kept(masks: sc.Masks) -> list[int]:
    return [left for left, _ in masks.units.values()]


def test_a_global_budget_takes_as_many_from_each_block_and_each_its_own_lowest():
    rows = [1.0, 9, 8, 7], [16.0, 12, 30, 40], [15.0, 60, 13, 70]
    net, structure = blocks(*rows)
    assert kept(sc.prune(net, sc.L2Norm(), sc.Global(0.5), structure=structure)) != [2, 2, 2]
    net, structure = blocks(*rows)
    masks = sc.prune(net, sc.L2Norm(), sc.Global(0.5), structure=structure, alike=True)
    assert kept(masks) == [2, 2, 2]
    gone = [(branch.up.weight[:, 0] == 0).nonzero().flatten().tolist() for branch in net]
    assert gone == [[0, 3], [0, 1], [0, 2]]


def test_kinds_are_compared_by_the_means_of_their_ranked_scores():
    # Two kinds, by width. Means by rank: 1, 4, 9 of the three; 3, 5 of the two: the lowest 3 are 1, 3, 4.
    net, structure = blocks([1.0, 4, 9], [4.0, 6], [9.0, 1, 4], [2.0, 4])
    masks = sc.prune(net, sc.L2Norm(), sc.Global(0.6), structure=structure, alike=True)
    assert kept(masks) == [1, 1, 1, 1]
    net, structure = blocks([1.0, 4, 9], [4.0, 6], [9.0, 1, 4], [2.0, 4])
    masks = sc.prune(net, sc.L2Norm(), sc.Threshold(3.5), structure=structure, alike=True)
    assert kept(masks) == [2, 1, 2, 1]


def test_rounding_and_shares_stay_alike_and_exact():
    rows = [[float(value) for value in torch.randperm(16) + 1] for _ in range(3)]
    net, structure = blocks(*rows)
    with pytest.warns(sc.SecateurWarning, match="multiple of 8"):
        masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.7), structure=structure, alike=True, round_to=8)
    assert kept(masks) == [8, 8, 8]
    assert set(masks.requested.values()) == {0.7}
    assert len(masks.requested) == 3


def test_an_earlier_pruning_goes_first_and_may_not_exceed_the_number():
    net, structure = blocks([1.0, 2, 3, 4], [4.0, 3, 2, 1])
    first = sc.prune(net, sc.L2Norm(), sc.Uniform(0.25), structure=structure, alike=True)
    more = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, alike=True, masks=first)
    assert kept(more) == [2, 2]
    net, structure = blocks([1.0, 2, 3, 4], [4.0, 3, 2, 1])
    uneven = sc.prune(net, sc.L2Norm(), sc.Uniform(0.75), structure=structure, include="0.up")
    with pytest.raises(MaskError, match="3 units are masked already and the budget takes 2"):
        sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, alike=True, masks=uneven)


def test_prune_to_cuts_blocks_alike():
    rows = [[float(value) for value in torch.randperm(16) + 1 + 20 * block] for block in range(3)]
    net, _ = blocks(*rows)
    small, proof = sc.prune_to(net, X, parameters=0.5, alike=True)
    assert {len(branch.up.weight) for branch in small} == {8}
    assert proof.parameters == (384, 192)


def test_what_does_not_go_with_it_is_refused():
    net, structure = blocks([1.0, 2], [2.0, 1])
    with pytest.raises(BudgetError, match="count whole units"):
        sc.prune(net, sc.Magnitude(), sc.Uniform(0.5), alike=True)
    with pytest.raises(BudgetError, match="weighs each group by itself"):
        sc.prune(net, sc.L2Norm(), sc.ParameterShare(0.5), structure=structure, alike=True)
    with pytest.raises(BudgetError, match="True or False"):
        sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, alike=1)
