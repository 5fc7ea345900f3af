"""``prune`` with ``structure=``: exact counts of whole units, what they keep, and what is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import (
    BudgetError,
    CriterionError,
    MaskError,
    NonFiniteError,
    SecateurError,
    SecateurWarning,
    TargetError,
)

X = torch.zeros(2, 4)


def ranked(first: list[float], second: list[float]) -> nn.Sequential:
    """A network whose units have the given L2 norms: hidden layers of these sizes."""
    net = nn.Sequential(
        nn.Linear(4, len(first)),
        nn.ReLU(),
        nn.Linear(len(first), len(second)),
        nn.ReLU(),
        nn.Linear(len(second), 3),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
        for layer, norms in ((net[0], first), (net[2], second)):
            layer.weight.fill_(layer.in_features**-0.5)
            layer.weight.mul_(torch.tensor(norms)[:, None])
    return net


def standard() -> nn.Sequential:
    return ranked([5, 1, 4, 2, 3, 6], [1.5, 3.5, 2.5, 9, 8, 7, 6.5, 4.5])


def pruned(net: nn.Module, budget, criterion=None, **options):
    """The units that went, by group, and the masks."""
    structure = options.pop("structure", None) or sc.trace(net, X)
    masks = sc.prune(net, criterion or sc.L2Norm(), budget, structure=structure, **options)
    return gone(net, structure), masks


def gone(net: nn.Module, structure: sc.Structure) -> list[list[int]]:
    found = []
    for group in structure.groups.values():
        bias = next(part for part in group.slices if part.name.endswith("bias"))
        found.append(torch.where(net.get_parameter(bias.name) == 0)[0].tolist())
    return found


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
