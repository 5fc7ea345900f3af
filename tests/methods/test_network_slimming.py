"""Network slimming: the penalty on the scales of batch norms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.comparing import snapshot
from networks.drawn import randn
from networks.plain import mlp
from networks.selected import quadratic
from secateur.errors import BudgetError, TargetError
from secateur.methods.network_slimming import slimming


def normed():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2)
    ).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, -2, 0, 0.5, 1, 1]))
    return net


@pytest.mark.parametrize("closure", [False, True])
def test_the_penalty_is_added_to_the_gradient_of_scales(closure):
    net, x = normed(), randn(8, 5)
    quadratic(net, x).backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters()}
    expected["1.weight"] += 0.3 * torch.tensor([1.0, -1, 0, 1, 1, 1]).double()
    before = snapshot(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def evaluate():
        optimizer.zero_grad()
        loss = quadratic(net, x)
        loss.backward()
        return loss

    with slimming(optimizer, net, 0.3):
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=0, atol=1e-12)
        assert torch.allclose(parameter, before[name] - 0.1 * expected[name], rtol=0, atol=1e-12)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_of_gradients_is_taken_into_account(fused):
    """Unfused, gradients are unscaled before the step; fused, by the step itself."""
    ends = []
    for enabled in (False, True):
        net, x = normed().float(), randn(8, 5).float()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
        with slimming(optimizer, net, 0.5):
            scaler.scale(quadratic(net, x)).backward()
            scaler.step(optimizer)
        ends.append(snapshot(net))
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-6) for n in ends[0])


def test_scales_shrink():
    x = randn(64, 5)
    y = (x[:, 0] > 0).long()
    sums = []
    for penalty in (0.0, 0.02):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        with slimming(optimizer, net, penalty):
            for _ in range(100):
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        sums.append(float(net[1].weight.detach().abs().sum()))
    assert sums[1] < 0.7 * sums[0]


def test_slimming_needs_scales():
    net = mlp(3, 4, 2, seed=0).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TargetError, match="no scale of a BatchNorm"), slimming(optimizer, net):
        pass
    with pytest.raises(TargetError, match="no scale of a BatchNorm"), slimming(optimizer, normed()):
        pass
    with pytest.raises(BudgetError, match="penalty is -1"), slimming(optimizer, net, -1):
        pass
    instance = nn.Sequential(nn.Conv1d(3, 4, 1), nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm1d(4))
    with slimming(torch.optim.SGD(instance.parameters(), lr=0.1), instance):
        pass


def test_several_optimizers_each_penalise_their_own_scales():
    ends = []
    for several in (False, True):
        net, x = normed(), randn(8, 5)
        parts = (net[:2], net[2:]) if several else (net,)
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
        with slimming(optimizers, net, 0.3):
            quadratic(net, x).backward()
            for optimizer in optimizers:
                optimizer.step()
        ends.append(snapshot(net))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
