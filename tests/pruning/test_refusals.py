"""What is refused before a weight changes, found by trying the library as a stranger."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, MaskError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def unchanged(model: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))


def test_during_with_another_models_optimizer_changes_nothing():
    model, other = net(), net()
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    schedule = sc.Cubic(steps=3)
    with (
        pytest.raises(MaskError, match="the optimizer updates none of what would be pruned"),
        sc.during(optimizer, model, sc.Magnitude(), sc.Global(0.5), schedule, every=1),
    ):
        pass
    assert unchanged(model)


CHOICES = [
    (lambda m: sc.prune(m, sc.Magnitude, sc.Global(0.5)), "criterion is <class .*; it is an instance"),
    (lambda m: sc.prune(m, "magnitude", sc.Global(0.5)), "criterion is 'magnitude'; it is an instance"),
    (lambda m: sc.prune(m, sc.Magnitude(), 0.5), "budget is 0.5; it is an instance, like Global"),
    (lambda m: sc.prune(m, sc.Magnitude(), sc.Global(0.5), granularity=(4, 4)), "it is a Block"),
    (
        lambda m: sc.prune(m, sc.Magnitude(), sc.NM(2, 4), granularity=sc.Block(2, 2)),
        "NM counts single weights, so it does not go with blocks",
    ),
    (lambda m: sc.prune(m, sc.Random(), sc.Std(1.0)), "Std .* goes with Magnitude alone, not with Random"),
    (
        lambda m: sc.gradually(m, sc.Magnitude(), sc.Threshold(0.1), sc.Cubic(3), shrinkage=sc.Soft()),
        "Soft would shrink the same weights at each of 3 steps",
    ),
    (
        lambda m: sc.gradually(m, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3), exlude="0"),
        "prune has no option 'exlude'; did you mean 'exclude'",
    ),
    (
        lambda m: sc.gradually(m, sc.Wanda(), sc.Global(0.5), sc.Cubic(3), data=iter([torch.ones(1, 8)])),
        "which gives its batches once, not 3 times",
    ),
]


@pytest.mark.parametrize(("call", "message"), CHOICES, ids=range(len(CHOICES)))
def test_choices_that_cannot_be_meant(call, message):
    model = net()
    with pytest.raises(BudgetError, match=message):
        call(model)
    assert unchanged(model)


def test_a_tied_weight_answers_to_each_of_its_names():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    assert list(sc.find_targets(model, exclude="b")) == ["c.weight"]
    assert list(sc.find_targets(model, include="b")) == ["a.weight"]


def test_a_frozen_layer_is_named():
    model = net()
    model[0].weight.requires_grad_(False)
    assert "0.weight is pruned though it is frozen" in repr(sc.prune(model, sc.Magnitude(), sc.Global(0.5)))
