"""What a criterion, budget, shrinkage or schedule gives back is checked; what it spoils is put back."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import secateur as sc
from networks.plain import mlp
from secateur.errors import BudgetError, CriterionError

net = partial(mlp, 6, 8, 12, 4, seed=0)
X = torch.ones(2, 6)


def raising_at_the_second(weight, pruned, cut):
    weight.masked_fill_(pruned, 0)
    if len(weight) == 12:
        raise KeyError("second")
    return pruned


def writing_a_nan(weight, pruned, cut):
    weight.view(-1)[0] = math.nan
    return pruned


def of_another_shape(weight, pruned, cut):
    weight.data = torch.zeros(2)
    return pruned


@pytest.mark.parametrize(
    ("shrinkage", "wrong"),
    [
        (raising_at_the_second, "2.weight: raising_at_the_second failed: KeyError: 'second'"),
        (lambda weight, pruned, cut: None, "0.weight: <lambda> returned None"),
        (lambda weight, pruned, cut: pruned.float(), "returned a torch.float32"),
        (lambda weight, pruned, cut: pruned[:1], r"returned a torch.bool of \(1, 6\)"),
        (lambda weight, pruned, cut: pruned, "0.weight: <lambda> says that it zeroed weights"),
        (writing_a_nan, "a NaN"),
        (of_another_shape, "another shape"),
    ],
)
def test_a_shrinkage_that_spoils_a_weight_leaves_all_as_they_were(shrinkage, wrong):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BudgetError, match=wrong):
        sc.prune(model, sc.Magnitude(), sc.Uniform(0.5), shrinkage=shrinkage)
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, "a", None])
def test_a_cut_is_at_a_number(value):
    with pytest.raises(BudgetError, match="value is a score"):
        sc.Cut(value)


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize(
    "scores",
    [
        lambda weights: None,
        lambda weights: dict.fromkeys(weights, 5),
        lambda weights: {name: weight.tolist() for name, weight in weights.items()},
        lambda weights: {name: weight.long() for name, weight in weights.items()},
        lambda weights: {name: weight[:1] for name, weight in weights.items()},
        lambda weights: {name: lambda rows, w=weight: w[rows].long() for name, weight in weights.items()},
        lambda weights: {name: lambda rows: None for name in weights},
    ],
)
def test_what_are_no_scores_is_an_error_of_the_criterion(scores, units):
    model = net()
    structure = sc.trace(model, X) if units else None

    def criterion(targets, data, loss):
        return scores({name: target.weight.detach() for name, target in targets.items()})

    with pytest.raises(CriterionError):
        sc.prune(model, criterion, sc.Uniform(0.5), structure=structure)


@pytest.mark.parametrize("scores", [None, {"0 -> 2": 5}, {"0 -> 2": torch.arange(8)}])
def test_what_are_no_scores_of_units_is_an_error_of_the_criterion(scores):
    model = net()

    class Own:
        counts_units = True

        def __call__(self, structure, data=None, loss=None):
            return scores

    with pytest.raises(CriterionError):
        sc.prune(model, Own(), sc.Uniform(0.5), structure=sc.trace(model, X), include="0 -> 2")


@pytest.mark.parametrize("units", [False, True])
def test_a_criterion_that_changes_weights_is_refused_and_they_are_put_back(units):
    model = net()
    before = copy.deepcopy(model.state_dict())
    structure = sc.trace(model, X) if units else None

    def criterion(targets, data, loss):
        for target in targets.values():
            target.weight.data.mul_(2)
        return sc.Magnitude()(targets)

    with pytest.raises(CriterionError, match=r"criterion changed 0\.weight"):
        sc.prune(model, criterion, sc.Uniform(0.5), structure=structure)
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize(
    ("cuts", "wrong"),
    [
        (lambda scores: None, "gave None; a budget gives a dict of cuts"),
        (lambda scores: {}, "gave no cut for '0"),
        (lambda scores: dict.fromkeys(scores, 0.5), "gave 0.5; it gives a cut"),
    ],
)
def test_what_are_no_cuts_is_an_error_of_the_budget(cuts, wrong, units):
    model = net()
    structure = sc.trace(model, X) if units else None
    with pytest.raises(BudgetError, match=wrong):
        sc.prune(model, sc.Magnitude(), lambda scores, weights: cuts(scores), structure=structure)


@pytest.mark.parametrize("way", [0.5, None, [], ["a"]])
def test_a_schedule_that_gives_no_list_of_amounts_is_refused(way):
    with pytest.raises(BudgetError, match="a schedule gives a list of amounts"):
        list(sc.gradually(net(), sc.Magnitude(), sc.Uniform(0.5), lambda final: way))


def test_what_is_no_schedule_is_refused():
    with pytest.raises(BudgetError, match="schedule is 3"):
        list(sc.gradually(net(), sc.Magnitude(), sc.Uniform(0.5), 3))


def test_an_amount_that_names_no_field_is_refused():
    budget = SimpleNamespace(amount="share")
    with pytest.raises(BudgetError, match="amount is 'share'; it names a field"):
        sc.pruning.schedules.budgets_along(budget, sc.Cubic(2))
