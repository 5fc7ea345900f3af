"""Units that earlier masks took, masks of units that are held, saved and wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from networks.ranked import X, pruned, standard
from secateur.errors import (
    MaskError,
)

# -- earlier masks ----------------------------------------------------------------------------------


def test_what_earlier_masks_took_goes_first():
    net = standard()
    structure = sc.trace(net, X)
    first, masks = pruned(net, sc.Uniform(0.3), structure=structure)
    assert first == [[1, 3], [0, 2]]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(50.0)  # training that did not hold the zeros
        net[0].weight[:5] = 1.0
    second, more = pruned(net, sc.Uniform(0.5), structure=structure, masks=masks)
    assert {1, 3} < set(second[0])
    assert {0, 2} < set(second[1])
    assert [len(u) for u in second] == [3, 4]
    assert all((masks[n] | ~more[n]).all() for n in masks)
    more.check()


@pytest.mark.parametrize("budget", [sc.Uniform(0.5), sc.Global(0.5), sc.LAMP(0.5), sc.ParameterShare(0.5)])
def test_every_budget_takes_earlier_masks_first(budget):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    structure = sc.trace(net, X)
    first, masks = pruned(net, sc.Uniform(0.3), structure=structure)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    second, _ = pruned(net, budget, structure=structure, masks=masks)
    assert all(set(a) <= set(b) for a, b in zip(first, second, strict=True))
    assert sum(map(len, second)) > sum(map(len, first))


def test_a_smaller_budget_keeps_what_is_masked():
    net = standard()
    structure = sc.trace(net, X)
    first, masks = pruned(net, sc.Uniform(0.5), structure=structure)
    second, again = pruned(net, sc.Uniform(0.1), structure=structure, masks=masks)
    assert first == second
    assert again == masks


def test_masks_of_single_weights_stay():
    net = standard()
    masks = sc.prune(net, sc.Random(), sc.Uniform(0.4))
    _, both = pruned(net, sc.Uniform(0.5), masks=masks)
    assert all((masks[n] | ~both[n]).all() for n in masks)
    both.check()


def test_masks_of_single_weights_are_zeroed_again():
    net = standard()
    masks = sc.prune(net, sc.Random(), sc.Uniform(0.4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    _, both = pruned(net, sc.Uniform(0.5), masks=masks)
    both.check()


def test_masks_of_another_network_are_an_error():
    other = nn.Sequential(nn.Linear(4, 2))
    masks = sc.prune(other, sc.Magnitude(), sc.Uniform(0.5))
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(MaskError):
        pruned(net, sc.Uniform(0.5), masks=masks)


def test_unit_masks_are_held_through_training():
    net = standard()
    _, masks = pruned(net, sc.Uniform(0.5))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    with masks.held(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
    masks.check()


def test_unit_masks_in_a_file(tmp_path):
    net = standard()
    _, masks = pruned(net, sc.Uniform(0.5))
    masks.save(tmp_path / "masks.safetensors")
    assert sc.Masks.load(tmp_path / "masks.safetensors", net) == masks
