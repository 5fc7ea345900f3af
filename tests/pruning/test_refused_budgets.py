"""Settings, weights and scores that no budget takes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from counted import of
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, NonFiniteError
from secateur.pruning.selection import Cut

# -- what no budget can be -----------------------------------------------------------------------


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf, "0.5", None, 90])
@pytest.mark.parametrize("rule", [sc.Uniform, sc.Global, sc.ERK, sc.LAMP, lambda s: sc.PerLayer({"fc": s})])
def test_a_share_is_between_0_and_1(rule, share):
    with pytest.raises(BudgetError, match=r"sparsity.* is .*; it is a share between 0 and 1"):
        rule(share)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None])
def test_a_value_is_finite_from_0(value):
    with pytest.raises(BudgetError, match=r"sensitivity is .*; it is a finite number from 0"):
        sc.Std(value)
    with pytest.raises(BudgetError, match=r"threshold is .*; it is a finite number from 0"):
        sc.Threshold(value)


def test_other_settings():
    with pytest.raises(BudgetError, match="per is 'column'; it is 'layer' or 'row'"):
        sc.Uniform(0.5, per="column")
    with pytest.raises(BudgetError, match="min_kept is -1; it counts entries, from 0"):
        sc.Global(0.5, min_kept=-1)
    for keep, of_ in [(0, 4), (5, 4), (-1, 2)]:
        with pytest.raises(BudgetError, match=rf"NM\({keep}, {of_}\): keep 1 to {of_} of every {of_}"):
            sc.NM(keep, of_)


BUDGETS = [
    sc.Uniform(0.5), sc.Uniform(0.5, per="row"), sc.Global(0.5), sc.Global(0.5, min_kept=1), sc.ERK(0.5),
    sc.LAMP(0.5), sc.NM(2, 4), sc.PerLayer({"*": 0.5}), sc.Std(1.0), sc.Std(1.0, living=True),
    sc.Threshold(0.1),
]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_are_refused_and_nothing_changes(mlp, budget, bad):
    net = mlp()
    with torch.no_grad():
        net[2].weight[3, 5] = bad
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"^2\.weight: .*NaN or an infinity"):
        sc.prune(net, sc.Magnitude(), budget)
    assert all(torch.equal(t.nan_to_num(9), before[n].nan_to_num(9)) for n, t in net.state_dict().items())


def test_cut_keeps_what_was_asked_for():
    scores, named = of([torch.rand(2, 5)])
    assert sc.Uniform(0.33)(scores, named)["w0"].requested == 0.33
    assert isinstance(sc.Global(0.5)(scores, named)["w0"], Cut)
    assert sc.Global(0.5)(scores, named)["w0"].requested is None


def test_magnitude_ratios_take_magnitudes_counts_by_other_scores():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 5.0]]))
        model[1].weight.copy_(torch.tensor([[6.0], [7.0], [0.4], [8.0]]))
    counts = []
    for seed in range(5):
        copied = copy.deepcopy(model)
        masks = sc.prune(copied, sc.Random(seed), sc.MagnitudeRatios(0.5))
        assert [int((~mask).sum()) for mask in masks.values()] == [3, 1]  # 0.1, 0.2, 0.3 and 0.4
        counts.append(tuple(masks["0.weight"][0].tolist()))
    assert len(set(counts)) > 1, "which of them go is the criterion's choice"


def test_per_layer_without_a_layer_is_refused():
    with pytest.raises(BudgetError, match="names no layer"):
        sc.PerLayer({})


NO_SHARES = [True, False, math.nan, math.inf, -0.1, 1.1, "0.5", None, [0.5], 1j, 10**400]


@pytest.mark.parametrize("value", NO_SHARES, ids=repr)
def test_what_is_no_share_is_refused_by_every_budget(value):
    """True is not 100 %: it once pruned everything."""
    rules = [sc.Uniform, sc.Global, sc.ERK, sc.LAMP, sc.MagnitudeRatios, sc.ParameterShare]
    for make in (*rules, lambda share: sc.PerLayer({"fc1": share})):
        with pytest.raises(BudgetError, match="it is a share between 0 and 1"):
            make(value)


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -0.1, "0.5", None, 10**400], ids=repr)
def test_what_is_no_value_is_refused(value):
    for rule in (sc.Std, sc.Threshold):
        with pytest.raises(BudgetError, match="it is a finite number from 0"):
            rule(value)


def test_counts_and_flags_are_what_they_are():
    for wrong in (True, -1, 1.5, "1", None, math.nan):
        for rule in (sc.Global, sc.LAMP):
            with pytest.raises(BudgetError, match=r"min_kept is .*; it counts entries"):
                rule(0.5, min_kept=wrong)
        for kept, every in ((wrong, 4), (2, wrong)):
            with pytest.raises(BudgetError, match="NM"):
                sc.NM(kept, every)
    for wrong in (1, "true", None):
        with pytest.raises(BudgetError, match=r"living is .*; it is True or False"):
            sc.Std(1.0, living=wrong)
    for wrong in (0.5, [0.5], {1: 0.5}, "fc1", None):
        with pytest.raises(BudgetError, match="is no mapping of shares by pattern"):
            sc.PerLayer(wrong)
