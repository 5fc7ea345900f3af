"""What is refused before a weight changes, found by trying the library as a stranger."""

from functools import partial

import pytest
import torch
from torch import nn

import secateur as sc
from networks.plain import mlp
from secateur.errors import BudgetError, CriterionError, MaskError, ModelError, TargetError

net = partial(mlp, 8, 8, 4, seed=0)


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
        "Soft would shrink the same weights at each step of a schedule",
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
    with pytest.raises((BudgetError, CriterionError), match=message):
        call(model)
    assert unchanged(model)


def test_swapped_criterion_and_budget_are_told_apart():
    with pytest.raises(CriterionError, match=r"criterion is Global\(.*, a budget; prune\(model, criterion"):
        sc.prune(net(), sc.Global(0.5), sc.Magnitude())  # type: ignore[arg-type]
    for criterion in (sc.Taylor(), sc.L2Norm()):
        with pytest.raises(BudgetError, match="a criterion; prune"):
            sc.prune(net(), sc.Magnitude(), criterion)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="model is <class"):
        sc.prune(nn.Linear, sc.Magnitude(), sc.Global(0.5))  # type: ignore[arg-type]


def test_an_empty_include_says_so():
    with pytest.raises(TargetError, match="include is empty"):
        sc.prune(net(), sc.Magnitude(), sc.Global(0.5), include=[])
    assert sc.prune(net(), sc.Magnitude(), sc.Global(0.5), exclude=[]).sparsity == 0.5


def test_held_by_no_optimizer():
    masks = sc.prune(net(), sc.Magnitude(), sc.Global(0.5))
    for thing in (None, torch.optim.SGD):
        with pytest.raises(MaskError, match="it is the one that trains the model"), masks.held(thing):
            pass


X, Y = torch.randn(6, 8), torch.randint(4, (6,))
DATA = [
    (sc.Wanda(), X, None, CriterionError, "was given a Tensor as data; pass batches: a list of tensors"),
    (sc.Wanda(), {"x": X}, None, CriterionError, "was given a dict as data; pass batches"),
    (sc.Wanda(), "abc", None, CriterionError, "was given a str as data; pass batches"),
    (sc.Wanda(), 3, None, CriterionError, "was given a int as data; pass batches"),
    (sc.Wanda(), [X.numpy()], None, CriterionError, "batch 1 of data= holds a ndarray"),
    (sc.Wanda(), [X, "abc"], None, CriterionError, "batch 2 of data= holds a str"),
    (sc.Wanda(), [X[:, :5]], None, ModelError, r"does not run on a batch of data= \(6, 5\) of float32"),
    (sc.Wanda(), [X.double()], None, ModelError, r"does not run on a batch of data= \(6, 8\) of float64"),
    (sc.Taylor(), [(X[:, :5], Y)], None, ModelError, r"does not run on a batch of data= \(6, 5\)"),
    (
        sc.Taylor(),
        [(X, Y[:3])],
        None,
        CriterionError,
        r"loss fails on outputs \(6, 4\) .* labels \(3,\) of int64",
    ),
    (sc.Taylor(), [(X, Y + 9)], None, CriterionError, "loss fails on outputs .*out of bounds"),
    (sc.Taylor(), [(X, X)], None, CriterionError, "the loss fails on outputs"),
    (sc.Taylor(), [(X, Y)], 3, CriterionError, "loss is 3; it is a function"),
    (sc.Taylor(), [(X, Y)], lambda out, y: out, CriterionError, "one number with a gradient is right"),
    (sc.Taylor(), [(X, Y)], lambda out, y: 1.0, CriterionError, "is 1.0; one number with a gradient"),
    (sc.Fisher(), [(X, Y)], lambda out, y: out.detach().sum(), CriterionError, "no gradient; one number"),
]


@pytest.mark.parametrize(("criterion", "data", "loss", "kind", "message"), DATA, ids=range(len(DATA)))
def test_data_and_losses_that_do_not_fit(criterion, data, loss, kind, message):
    model = net()
    with pytest.raises(kind, match=message):
        sc.prune(model, criterion, sc.Uniform(0.5), data=data, loss=loss)
    assert unchanged(model)


def test_data_that_do_not_fit_whole_units():
    model = net()
    structure = sc.trace(model, X)
    with pytest.raises(ModelError, match="does not run on a batch of data="):
        sc.prune(model, sc.ActivationNorm(), sc.Uniform(0.5), data=[X[:, :5]], structure=structure)
    with pytest.raises(CriterionError, match="was given a Tensor as data"):
        sc.prune(model, sc.ActivationNorm(), sc.Uniform(0.5), data=X, structure=structure)


def test_a_tied_weight_answers_to_each_of_its_names():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    assert list(sc.find_targets(model, exclude="b")) == ["c.weight"]
    assert list(sc.find_targets(model, include="b")) == ["a.weight"]


def test_a_frozen_layer_is_named():
    model = net()
    model[0].weight.requires_grad_(False)
    assert "0.weight is pruned though it is frozen" in repr(sc.prune(model, sc.Magnitude(), sc.Global(0.5)))
