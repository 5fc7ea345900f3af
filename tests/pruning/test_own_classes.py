"""Criteria, budgets, shrinkages and schedules of a user's own work wherever secateur's do."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import secateur as sc
from networks.plain import mlp
from secateur.errors import BudgetError, SecateurWarning

net = partial(mlp, 6, 8, 12, 4, seed=0)


class Distance:
    """A criterion on single weights: how far each is from the mean of its tensor."""

    def __call__(self, targets, data=None, loss=None):
        weights = {name: target.weight.detach() for name, target in targets.items()}
        return {name: (weight - weight.mean()).abs() for name, weight in weights.items()}


class FirstUnits:
    """A criterion on whole units: the first ones go first."""

    counts_units = True

    def __call__(self, structure, data=None, loss=None):
        return {name: torch.arange(len(group)).float() for name, group in structure.groups.items()}


class Sorted:
    """A budget: the lowest of each tensor or group, found by sorting; no dataclass."""

    amount = "sparsity"

    def __init__(self, sparsity):
        self.sparsity = sparsity

    def __call__(self, scores, weights):
        return {name: self.cut(one.whole().flatten().sort().values) for name, one in scores.items()}

    def cut(self, ordered):
        number = round(self.sparsity * len(ordered))
        value = float(ordered[number - 1]) if number else -math.inf
        ties = int((ordered[:number] == value).sum())
        return sc.Cut(value, ties, int((ordered == value).sum()), self.sparsity)


class OneOfEach:
    """A budget for units alone: the lowest one of each group."""

    counts_units = True

    def __call__(self, scores, structure, min_kept):
        assert scores.keys() <= structure.groups.keys()
        return {name: sc.Uniform(1 / one.numel)({name: one}, {})[name] for name, one in scores.items()}


class Rounded:
    """A shrinkage: what stays is rounded to 64ths, whatever the criterion."""

    def __call__(self, weight, pruned, cut):
        weight.copy_((weight * 64).round() / 64).masked_fill_(pruned, 0)
        return pruned


class Halfway:
    """A schedule: half of the way, then the rest."""

    def __call__(self, final):
        return [final / 2, final]


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def test_on_weights():
    model = net()
    masks = sc.prune(model, Distance(), Sorted(0.5), shrinkage=Rounded())
    assert masks.sparsity == sc.sparsity(model) == 0.5
    assert masks.requested_overall == 0.5
    assert torch.equal(model[0].weight * 64, (model[0].weight * 64).round())


@pytest.mark.parametrize("criterion", [Distance(), FirstUnits(), sc.L2Norm()])
def test_on_units(criterion):
    model = net()
    masks = sc.prune(model, criterion, Sorted(0.5), structure=sc.trace(model, X))
    assert masks.units == {"0 -> 2": (4, 8), "2 -> 4": (6, 12)}
    assert masks.requested_overall == 0.5
    if isinstance(criterion, FirstUnits):
        assert not model[0].weight[:4].any()


def test_a_budget_for_units_alone():
    model = net()
    masks = sc.prune(model, FirstUnits(), OneOfEach(), structure=sc.trace(model, X))
    assert masks.units == {"0 -> 2": (7, 8), "2 -> 4": (11, 12)}
    with pytest.raises(BudgetError, match="OneOfEach counts whole units: pass structure="):
        sc.prune(model, sc.Magnitude(), OneOfEach())


@pytest.mark.parametrize("criterion", [Distance(), sc.Magnitude()])
def test_gradually_on_weights(criterion):
    steps = sc.gradually(net(), criterion, Sorted(0.5), Halfway(), shrinkage=Rounded())
    assert [masks.sparsity for masks in steps] == [0.25, 0.5]


@pytest.mark.parametrize("criterion", [Distance(), FirstUnits()])
def test_gradually_on_units(criterion):
    model = net()
    steps = sc.gradually(model, criterion, Sorted(0.5), Halfway(), structure=sc.trace(model, X))
    assert [masks.units["2 -> 4"] for masks in steps] == [(9, 12), (6, 12)]


class AtOnce:
    """A schedule of one step, for a budget without an amount."""

    one_shot = True

    def __call__(self, final):
        return [final]


def test_a_schedule_of_one_step():
    (masks,) = sc.gradually(net(), sc.Magnitude(), sc.NM(2, 4), AtOnce(), include="4")
    assert masks.sparsity == 0.5
    with pytest.raises(BudgetError, match="has no amount that a schedule could raise"):
        sc.gradually(net(), sc.Magnitude(), sc.NM(2, 4), Halfway(), include="4")


def test_during():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sc.during(optimizer, model, Distance(), Sorted(0.5), Halfway(), every=1) as pruning:
        model(X).sum().backward()
        optimizer.step()
    assert pruning.masks.sparsity == 0.5


@pytest.mark.parametrize("criterion", [Distance(), FirstUnits()])
def test_prune_to(criterion):
    _, proof = sc.prune_to(net(), X, parameters=0.6, criterion=criterion)
    assert proof.parameters[1] <= 0.6 * proof.parameters[0]


def test_prune_greedily():
    method = sc.Greedy(criterion=FirstUnits(), scope="network", every=3)
    _, run = sc.prune_greedily(net(), X, [X], parameters=0.9, method=method)
    assert {one.unit for one in run.removals if one.group == "0 -> 2"} <= {0, 1}
    assert all(one.score is None for one in run.removals)
    with pytest.raises(BudgetError, match="criterion is <class"):
        sc.Greedy(criterion=FirstUnits)


def test_what_a_shrinkage_says_of_itself_is_kept():
    class Softer(Rounded):
        shrinks = True

    with pytest.raises(BudgetError, match="Softer reads the size of the weights"):
        sc.prune(net(), Distance(), Sorted(0.5), shrinkage=Softer())
    with pytest.raises(BudgetError, match="Softer would shrink the same weights at each step"):
        sc.gradually(net(), sc.Magnitude(), Sorted(0.5), Halfway(), shrinkage=Softer())
    assert sc.prune(net(), sc.Magnitude(), Sorted(0.5), shrinkage=Softer()).sparsity == 0.5


def test_the_old_name_is_read_with_a_warning():
    class Old:
        whole_units = True
        __call__ = FirstUnits.__call__

    model = net()
    with pytest.warns(SecateurWarning, match="Old: whole_units is called counts_units now"):
        masks = sc.prune(model, Old(), sc.Uniform(0.5), structure=sc.trace(model, X))
    assert masks.units == {"0 -> 2": (4, 8), "2 -> 4": (6, 12)}
