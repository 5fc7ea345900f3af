"""Which groups are pruned: by include and exclude, and of which structure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from networks.ranked import X, pruned, standard
from secateur.errors import (
    TargetError,
)

# -- patterns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["0 -> 2", "0", "0.weight", "0.*", ["0.bias"]])
def test_include(pattern):
    assert pruned(standard(), sc.Uniform(0.5), include=pattern)[0] == [[1, 3, 4], []]


@pytest.mark.parametrize("pattern", ["0 -> 2", "0", "0.weight", "0.*", ["0.bias"]])
def test_exclude(pattern):
    assert pruned(standard(), sc.Uniform(0.5), exclude=pattern)[0] == [[], [0, 1, 2, 7]]


def test_a_group_goes_by_its_makers_and_not_by_its_readers():
    assert pruned(standard(), sc.Uniform(0.5), include="2")[0] == [[], [0, 1, 2, 7]]
    with pytest.raises(TargetError, match="include pattern '4' matches no group"):
        pruned(standard(), sc.Uniform(0.5), include="4")


def test_patterns_that_match_nothing():
    with pytest.raises(
        TargetError, match=r"include pattern '0.weigth' matches no group; did you mean '0.weight'"
    ):
        pruned(standard(), sc.Uniform(0.5), include="0.weigth")
    with pytest.raises(TargetError, match=r"exclude pattern 'conv' matches no group; the groups: 0 -> 2 \|"):
        pruned(standard(), sc.Uniform(0.5), exclude=["0", "conv"])
    with pytest.raises(TargetError, match="did you mean '0 -> 2'"):
        pruned(standard(), sc.Uniform(0.5), include="0 -> 1")


def test_a_layer_is_offered_and_a_buffer_is_neither_offered_nor_taken():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    net = nn.ModuleDict({"body": net})
    net.forward = lambda x: net["body"](x)
    structure = sc.trace(net, X)
    with pytest.raises(TargetError, match=r"did you mean 'body\.1'"):
        pruned(net, sc.Uniform(0.5), structure=structure, include="body.4")
    with pytest.raises(TargetError, match="matches no group") as seen:
        pruned(net, sc.Uniform(0.5), structure=structure, include="body.1.running_mean")
    assert "running" not in str(seen.value).partition("matches")[2]


def test_an_empty_include_is_named_as_such():
    with pytest.raises(TargetError, match="include is empty"):
        pruned(standard(), sc.Uniform(0.5), include=[])
    assert pruned(standard(), sc.Uniform(0.5), exclude=[])[0] == [[1, 3, 4], [0, 1, 2, 7]]


def test_patterns_that_leave_nothing():
    with pytest.raises(
        TargetError, match="no group of units to prune that the include and exclude patterns leave"
    ):
        pruned(standard(), sc.Uniform(0.5), exclude=["0", "2"])


def test_a_network_without_groups():
    net = nn.Linear(4, 3)
    with pytest.raises(
        TargetError, match=r"Linear has no group of units to prune; print\(structure\) says why"
    ):
        pruned(net, sc.Uniform(0.5))


def test_the_structure_of_another_model():
    with pytest.raises(TargetError, match=r"traced from another model .* trace this very model again"):
        pruned(standard(), sc.Uniform(0.5), structure=sc.trace(standard(), X))
    with pytest.raises(TargetError, match="structure= is a Tensor; pass what trace"):
        sc.prune(standard(), sc.L2Norm(), sc.Uniform(0.5), structure=X)


def test_the_structure_of_a_wrapped_model():
    net = standard()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    masks = sc.prune(averaged, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(averaged, X))
    assert int((averaged.module[0].bias == 0).sum()) == 3
    assert set(masks) == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}
