import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, CriterionError


def net():
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, -2.0]]))
    return model


def total(model):
    return float(sum(p.detach().abs().sum() for p in model.parameters()))


def test_each_layer_is_pruned_alone_and_put_back():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = sc.sensitivity(model, total, levels=[0.0, 0.5])
    assert found.dense == 39
    assert found.scores == {"0.weight": (39.0, 39 - (1 + 2 + 3 + 4)), "1.weight": (39.0, 38.0)}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert "1.weight" in repr(found)


def test_an_error_loses_nothing():
    model = net()
    calls = 0

    def fails(_):
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ZeroDivisionError
        return 0.0

    with pytest.raises(ZeroDivisionError):
        sc.sensitivity(model, fails)
    assert total(model) == 39


def test_no_levels():
    with pytest.raises(BudgetError, match="levels is empty"):
        sc.sensitivity(net(), total, levels=[])


@pytest.mark.parametrize("result", [None, (None, 0.1), (), "good"])
def test_an_evaluation_that_gives_no_score(result):
    with pytest.raises(CriterionError, match=r"evaluate returned .*; it returns a score, or \(score, loss\)"):
        sc.sensitivity(net(), lambda model: result)
