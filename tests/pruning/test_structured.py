"""``prune`` with ``structure=``: whole units, what they keep, and what they are rounded to."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from networks.ranked import X, pruned, standard
from secateur.errors import (
    BudgetError,
    CriterionError,
    NonFiniteError,
    SecateurWarning,
)

# -- what is zeroed ---------------------------------------------------------------------------------


def test_every_slice_of_a_unit_is_zeroed_and_masked():
    net = standard()
    units, masks = pruned(net, sc.Uniform(0.5))
    assert units == [[1, 3, 4], [0, 1, 2, 7]]
    assert set(masks) == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}
    first = torch.tensor([True, False, True, False, False, True])
    second = torch.tensor([False, False, False, True, True, True, True, False])
    assert torch.equal(masks["0.weight"], first[:, None].expand(6, 4))
    assert torch.equal(masks["0.bias"], first)
    assert torch.equal(masks["2.weight"], second[:, None] & first)
    assert torch.equal(masks["2.bias"], second)
    assert torch.equal(masks["4.weight"], second.expand(3, 8))
    assert all(torch.equal(net.get_parameter(name) != 0, mask) for name, mask in masks.items())
    assert masks.model is net
    masks.check()


def test_what_stays_is_left_as_it_was():
    net, same = standard(), standard()
    _, masks = pruned(net, sc.Uniform(0.5))
    for name, parameter in net.named_parameters():
        kept = masks.kept.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[kept], same.get_parameter(name)[kept])


def test_masks_print_the_units(tmp_path):
    net = standard()
    _, masks = pruned(net, sc.Uniform(0.5))
    assert masks.units == {"0 -> 2": (3, 6), "2 -> 4": (4, 8)}
    assert (masks.notes, masks.requested_overall) == ((), 0.5)
    assert repr(masks).splitlines() == [
        "group   units  kept  sparsity  requested",
        "0 -> 2      6     3    50.00%     50.00%",
        "2 -> 4      8     4    50.00%     50.00%",
        "all        14     7    50.00%     50.00%",
        "67 of 110 entries of 5 tensors are masked",
    ]
    masks.save(tmp_path / "masks.safetensors")
    assert repr(sc.Masks.load(tmp_path / "masks.safetensors", net)) == repr(masks)
    assert repr(masks.bind(standard())) == repr(masks)


def test_masks_of_the_small_network_keep_the_dense_one_as_denominator(tmp_path):
    net = standard()
    _, masks = pruned(net, sc.Uniform(0.5))
    small, proof = sc.compact(net, X, masks=masks)
    assert proof.masks.sparsity == masks.sparsity
    assert repr(proof.masks) == repr(masks)
    assert proof.masks.layers()[0]["shape"] == [3, 4]
    assert proof.masks.layers()[0]["weights"] == 24
    proof.masks.save(tmp_path / "masks.safetensors")
    assert sc.Masks.load(tmp_path / "masks.safetensors", small).sparsity == masks.sparsity


def test_units_of_earlier_masks_stay_in_the_table():
    net = standard()
    structure = sc.trace(net, X)
    _, masks = pruned(net, sc.Uniform(0.5), structure=structure, include="0")
    _, both = pruned(net, sc.Uniform(0.25), structure=structure, include="2", masks=masks)
    assert both.units == {"0 -> 2": (3, 6), "2 -> 4": (6, 8)}


def test_nothing_to_do():
    units, masks = pruned(standard(), sc.Uniform(0.0))
    assert (units, dict(masks), masks.notes) == ([[], []], {}, ())
    assert masks.units == {"0 -> 2": (6, 6), "2 -> 4": (8, 8)}


def test_running_statistics_and_lengths_alone_are_left():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, X))
    assert net[1].running_var.tolist() == [1] * 6
    assert int((net[1].weight == 0).sum()) == 3
    assert set(masks) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight"}


@given(st.floats(0, 1), st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_counts_are_exact_and_no_layer_is_emptied(share, first, second, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(4, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 3)
    )
    structure = sc.trace(net, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        units, _ = pruned(net, sc.Uniform(share), structure=structure)
    sizes = [len(group) for group in structure.groups.values()]
    assert [len(u) for u in units] == [min(round(share * n), n - 1) for n in sizes]


@given(
    st.sampled_from([sc.Uniform(0.4), sc.Global(0.4), sc.LAMP(0.4), sc.Threshold(1.0)]), st.integers(0, 10**6)
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_same_again_changes_nothing(budget, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    structure = sc.trace(net, X)
    criterion = sc.L1Norm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        once, masks = pruned(net, budget, criterion, structure=structure)
        weights = [p.clone() for p in net.parameters()]
        twice, again = pruned(net, budget, criterion, structure=structure, masks=masks)
    if not isinstance(budget, sc.Threshold):
        assert once == twice
        assert again == masks
        assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))


# -- round_to and min_kept --------------------------------------------------------------------------


def test_units_that_rounding_gives_back_are_noted_and_warned_of():
    with pytest.warns(SecateurWarning, match="0 -> 2: 1 units stay .* take, to keep a multiple of 4"):
        _, masks = pruned(standard(), sc.Uniform(0.5), round_to=4)
    assert masks.notes == ("0 -> 2: 1 units stay that the budget would take, to keep a multiple of 4",)
    assert masks.units == {"0 -> 2": (4, 6), "2 -> 4": (4, 8)}


@pytest.mark.parametrize("options", [{"round_to": 8}, {"min_kept": 2}])
def test_options_for_units_alone_want_a_structure(options):
    with pytest.raises(
        BudgetError, match=r"count whole units: pass structure=trace\(model, example_inputs\)"
    ):
        sc.prune(standard(), sc.Magnitude(), sc.Uniform(0.5), **options)


def test_round_to_gives_the_best_back():
    assert pruned(standard(), sc.Uniform(0.5), round_to=4)[0] == [[1, 3], [0, 1, 2, 7]]
    assert pruned(standard(), sc.Uniform(0.6), round_to=4)[0] == [[1, 3], [0, 1, 2, 7]]


def test_round_to_leaves_a_group_that_is_not_pruned():
    assert pruned(standard(), sc.PerLayer({"2*": 0.5}), round_to=4)[0][0] == []


def test_round_to_more_than_there_are_prunes_nothing():
    assert pruned(standard(), sc.Uniform(0.5), round_to=7)[0] == [[], [0]]


@given(st.floats(0, 1), st.integers(1, 6), st.integers(1, 10), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_what_is_kept_is_enough_and_a_multiple(share, round_to, min_kept, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)
        units, _ = pruned(net, sc.Uniform(share), round_to=round_to, min_kept=min_kept)
    for number, size in zip(map(len, units), (7, 9), strict=True):
        kept = size - number
        assert kept >= min(size, min_kept)
        assert kept == size or kept % round_to == 0
        assert number <= round(share * size)


@pytest.mark.parametrize("options", [{"round_to": 0}, {"min_kept": 0}])
def test_round_to_and_min_kept_count_from_one(options):
    with pytest.raises(BudgetError, match="both count units, from 1"):
        pruned(standard(), sc.Uniform(0.5), **options)


# -- errors change nothing --------------------------------------------------------------------------


def test_a_nan_is_an_error_and_nothing_changes():
    net = standard()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(NonFiniteError, match="0 -> 2"):
        pruned(net, sc.Uniform(0.5))
    assert all(
        torch.equal(a.nan_to_num(), b.detach().nan_to_num())
        for a, b in zip(before, net.parameters(), strict=True)
    )


def test_a_criterion_that_forgets_a_group():
    class Forgets:
        counts_units = True

        def __call__(self, structure, data=None, loss=None):
            return {"0 -> 2": torch.ones(6)}

    with pytest.raises(CriterionError, match="2 -> 4: the criterion gave no score for each of its 8 units"):
        pruned(standard(), sc.Uniform(0.5), Forgets())


def test_a_criterion_of_ones_own():
    class Backwards:
        counts_units = True

        def __call__(self, structure, data=None, loss=None):
            return {name: -torch.arange(len(g), dtype=torch.float32) for name, g in structure.groups.items()}

    assert pruned(standard(), sc.Uniform(0.5), Backwards())[0] == [[3, 4, 5], [4, 5, 6, 7]]
