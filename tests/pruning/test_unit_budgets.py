"""Budgets over whole units: exact counts, floors, shares of the parameters, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from networks.ranked import X, gone, pruned, ranked, standard
from secateur.errors import (
    BudgetError,
    SecateurError,
    SecateurWarning,
)

# -- budgets ----------------------------------------------------------------------------------------


def test_global_ranks_the_units_of_all_groups_together():
    units, masks = pruned(standard(), sc.Global(6 / 14))
    assert units == [[1, 3, 4], [0, 1, 2]]
    assert masks.requested_overall == 6 / 14


def test_global_leaves_every_layer_a_unit_and_takes_more_elsewhere():
    net = ranked([1, 2, 3], [10, 11, 12, 13, 14])
    units, _ = pruned(net, sc.Global(0.5))
    assert units == [[0, 1], [0, 1]]


def test_global_keeps_as_many_as_asked():
    units, _ = pruned(ranked([1, 2, 3, 4], [10, 11, 12, 13, 14, 15]), sc.Global(0.4), min_kept=3)
    assert units == [[0], [0, 1, 2]]


def test_a_floor_leaves_a_small_group_whole_and_takes_the_rest_elsewhere():
    for budget in (sc.Global(8 / 24), sc.LAMP(8 / 24)):
        net = ranked([1, 2, 3, 4], [i + 10 for i in range(20)])
        units, masks = pruned(net, budget, min_kept=12)
        assert units == [[], list(range(8))]
        assert masks.notes == ()


def test_global_that_cannot_be_met():
    with pytest.raises(BudgetError, match="min_kept=1 leaves only 12 that may"):
        pruned(standard(), sc.Global(1.0))


def test_normalised_scores_compare_layers_of_different_scale():
    net = ranked([1, 2, 3, 4], [100, 200, 300, 400])
    assert pruned(net, sc.Global(0.5), sc.L2Norm(normalise=True))[0] == [[0, 1], [0, 1]]


def test_per_layer():
    net = standard()
    units, masks = pruned(net, sc.PerLayer({"0 -> 2": 0.5}))
    assert units == [[1, 3, 4], []]
    assert masks.requested_overall is None
    assert pruned(standard(), sc.PerLayer({"0*": 0.5, "2*": 0.25}))[0] == [[1, 3, 4], [0, 2]]


def test_per_layer_with_a_pattern_of_no_group():
    with pytest.raises(BudgetError, match=r"PerLayer: 'conv' matches no group; the groups: 0 -> 2 \| 2 -> 4"):
        pruned(standard(), sc.PerLayer({"conv": 0.5}))


def test_threshold_takes_what_is_strictly_under_it():
    assert pruned(standard(), sc.Threshold(3.2))[0] == [[1, 3, 4], [0, 2]]


def test_threshold_over_everything_leaves_one():
    with pytest.warns(SecateurWarning, match="0 -> 2: 1 units stay that the budget would take, to keep 1"):
        units, masks = pruned(standard(), sc.Threshold(100))
    assert [len(u) for u in units] == [5, 7]
    assert 5 not in units[0]
    assert 3 not in units[1]
    assert "0 -> 2: 1 units stay that the budget would take, to keep 1" in masks.notes


def test_lamp_never_empties():
    units, _ = pruned(standard(), sc.LAMP(12 / 14))
    assert sum(map(len, units)) == 12
    assert all(len(u) < n for u, n in zip(units, (6, 8), strict=True))


def test_parameter_share_counts_each_entry_once():
    """A unit of the first group carries 4 + 1 + 8 parameters, one of the second 6 + 1 + 3; they share one."""
    total = 24 + 6 + 48 + 8 + 24 + 3
    for left, want in [(13, [[1], []]), (13.5, [[1], [0]]), (22, [[1], [0]]), (22.5, [[1, 3], [0]]),
                       (34, [[1, 3], [0]]), (34.5, [[1, 3], [0, 2]])]:  # fmt: skip
        assert pruned(standard(), sc.ParameterShare(left / total))[0] == want
    assert pruned(standard(), sc.ParameterShare(0.0))[0] == [[], []]


@given(st.floats(0, 0.8), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_parameter_share_is_reached_and_one_unit_fewer_would_not_do(share, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    structure = sc.trace(net, X)
    before = copy.deepcopy(net.state_dict())
    units, masks = pruned(net, sc.ParameterShare(share), structure=structure)
    old, new = sc.compact(net, X, structure=structure)[1].parameters
    assert 1 - new / old >= share
    assert masks.notes == (
        f"{1 - new / old:.2%} of the network's parameters go with the units, {share:.2%} asked",
    )
    number = sum(map(len, units))
    if number:
        net.load_state_dict(before)
        pruned(net, sc.Global((number - 1) / 16, min_kept=1), structure=structure)
        old, new = sc.compact(net, X, structure=structure)[1].parameters
        assert 1 - new / old < share


def test_parameter_share_of_a_network_with_shortcuts():
    """Rows and columns of the same weights overlap: counted twice, half would be three quarters."""
    net = nn.Sequential(nn.Conv2d(3, 20, 3), *(nn.Conv2d(20, 20, 3) for _ in range(4)), nn.Conv2d(20, 2, 1))
    x = torch.randn(1, 3, 16, 16)
    sc.prune(net, sc.L2Norm(), sc.ParameterShare(0.5), structure=sc.trace(net, x))
    old, new = sc.compact(net, x)[1].parameters
    assert 0.5 <= 1 - new / old < 0.53


def test_parameter_share_that_cannot_be_met():
    with pytest.raises(BudgetError, match=r"ParameterShare\(1.0\) cannot be met: with 1 units left in each"):
        pruned(standard(), sc.ParameterShare(1.0))
    with pytest.raises(BudgetError, match="with 5 units left"):
        pruned(standard(), sc.ParameterShare(0.8), min_kept=5)
    assert [len(u) for u in pruned(standard(), sc.ParameterShare(0.2), min_kept=5)[0]] == [1, 2]


@pytest.mark.parametrize("share", [-0.1, 1.5, "half"])
def test_parameter_share_is_a_share(share):
    with pytest.raises(BudgetError, match="it is a share between 0 and 1"):
        sc.ParameterShare(share)


@pytest.mark.parametrize("budget", [sc.Std(1.0), sc.NM(2, 4), sc.ERK(0.5)], ids=lambda b: type(b).__name__)
def test_budgets_that_count_weights_are_refused(budget):
    net = standard()
    message = (
        f"{type(budget).__name__} does not go with whole units; one of Uniform, Global, .*ParameterShare does"
    )
    with pytest.raises(BudgetError, match=message):
        pruned(net, budget, sc.Magnitude())
    assert gone(net, sc.trace(net, X)) == [[], []]


def test_std_is_refused_with_every_criterion():
    with pytest.raises(BudgetError, match="Std"):
        pruned(standard(), sc.Std(1.0), sc.L2Norm())


@pytest.mark.parametrize("options", [{"shrinkage": sc.Soft()}, {"granularity": sc.Block(2, 2)}])
def test_shrinkages_and_granularities_are_refused(options):
    with pytest.raises(BudgetError, match="they go with neither a shrinkage nor a block"):
        pruned(standard(), sc.Uniform(0.5), sc.Magnitude(), **options)


def test_classes_in_place_of_instances_are_refused():
    with pytest.raises(BudgetError, match="it is an instance"):
        pruned(standard(), sc.Uniform, sc.L2Norm())


# -- found while these tests were written -----------------------------------------------------------


def test_parameter_share_among_equals():
    net = standard()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    units, _ = pruned(net, sc.ParameterShare(39 / 113), include="0")
    assert len(units[0]) == 3


def test_parameter_share_without_a_structure_is_refused():
    with pytest.raises(SecateurError):
        sc.prune(standard(), sc.Magnitude(), sc.ParameterShare(0.5))
