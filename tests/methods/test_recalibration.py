import copy

import pytest
import torch
from torch import nn

import secateur as sc
from networks.drawn import randn
from secateur.errors import ModelError, NonFiniteError, TargetError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 8, 3)),
        *(nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 3)),
    ).double()


def test_each_norm_has_the_mean_statistics_of_what_it_reads():
    model, data = net(), [randn(16, 2, 8, 8), randn(16, 2, 8, 8) * 2 + 1]
    model[1].momentum = 0.3
    before = copy.deepcopy(model)
    assert sc.recalibrate(model.train(), data) == ["1", "5"]
    read = [before[0](x) for x in data]
    means, variances = ([f(y, (0, 2, 3)) for y in read] for f in (torch.mean, torch.var))
    assert torch.allclose(model[1].running_mean, torch.stack(means).mean(0))
    assert torch.allclose(model[1].running_var, torch.stack(variances).mean(0))
    assert int(model[1].num_batches_tracked) == 2
    assert model.training
    assert model[1].momentum == 0.3
    same = [n for n, t in model.state_dict().items() if torch.equal(t, before.state_dict()[n])]
    assert len(same) == len(model.state_dict()) - 6  # the weights are as they were


def test_a_pruned_network_comes_nearer_to_itself_before():
    model, x = net().eval(), randn(64, 2, 8, 8)
    sc.recalibrate(model, [x])
    dense = copy.deepcopy(model)
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(model, x))
    before = (model(x) - dense(x)).square().mean()
    sc.recalibrate(model, list(x.split(16)))
    assert (model(x) - dense(x)).square().mean() < before
    sc.compact(model, x)


def test_an_error_leaves_everything_as_it_was():
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="1: what it reads"):
        sc.recalibrate(model, [torch.full((2, 2, 8, 8), float("nan")).double()])
    with pytest.raises(ModelError, match="does not run on a batch of data="):
        sc.recalibrate(model, [randn(2, 2, 8, 8), randn(2, 3, 8, 8)])
    with pytest.raises(TargetError, match="no norm that keeps"):
        sc.recalibrate(nn.Linear(3, 3), [torch.randn(2, 3)])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
