import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, MaskError, TargetError


def test_a_proximal_step_by_hand():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.1]]))
        net[0].bias.copy_(torch.tensor([4.0, 0.0]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sc.group_lasso(optimizer, sc.trace(net, torch.ones(1, 2)), penalty=1.0):
        (0 * net(torch.ones(1, 2))).sum().backward()
        optimizer.step()
    # Norms 5 and 0.1, three entries each: 0.5 * sqrt(3) goes off both.
    factor = 1 - 0.5 * 3**0.5 / 5
    torch.testing.assert_close(net[0].weight, torch.tensor([[3.0 * factor, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(net[0].bias, torch.tensor([4.0 * factor, 0.0]))


def test_units_come_to_zero_and_are_removed_for_real():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    x = torch.randn(64, 2, 6, 6)
    y = x.mean((2, 3)).argmax(1)
    structure = sc.trace(net, x[:1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with sc.group_lasso(optimizer, structure, penalty=0.2):
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    small, proof = sc.compact(net, x[:1], structure=structure)
    assert proof.parameters[1] < proof.parameters[0]
    assert (small(x).argmax(1) == y).float().mean() > 0.9


def test_only_what_is_to_go_is_penalised_and_ever_more():
    net = nn.Linear(4, 1, bias=False)
    net.weight.data = torch.tensor([[1.0, 1.0, 2.0, 2.0]])
    masks = sc.prune(copy.deepcopy(net), sc.Magnitude(), sc.Uniform(0.5)).bind(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    with sc.growing_penalty(optimizer, masks, start=1.0, growth=1.0, every=2):
        for _ in range(4):
            optimizer.zero_grad()
            (0 * net.weight).sum().backward()
            optimizer.step()
            seen.append(net.weight[0].tolist())
    wanted = [0.9, 0.81, 0.81 * 0.8, 0.81 * 0.64]  # penalties 1, 1, 2, 2
    for row, value in zip(seen, wanted, strict=True):
        assert row == pytest.approx([value, value, 2.0, 2.0])


def test_what_cannot_be_is_refused():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    structure, other = sc.trace(net, torch.ones(1, 4)), nn.Linear(2, 2)
    optimizer, elsewhere = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, other))
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    for error, message, context in (
        (BudgetError, "penalty is -1", lambda: sc.group_lasso(optimizer, structure, -1)),
        (TargetError, "structure=", lambda: sc.group_lasso(optimizer, net)),
        (TargetError, "trains nothing of the units", lambda: sc.group_lasso(elsewhere, structure)),
        (BudgetError, "every is 0", lambda: sc.growing_penalty(optimizer, masks, every=0)),
        (MaskError, "updates none of", lambda: sc.growing_penalty(elsewhere, masks)),
    ):
        with pytest.raises(error, match=message), context():
            pass


def test_each_tensor_shrinks_at_its_own_rate_and_what_is_not_trained_not_at_all():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    net[1].weight.requires_grad_(False)
    groups = [
        {"params": [net[0].weight], "lr": 0.1},
        {"params": [net[0].bias], "lr": 0.0},
        {"params": [net[1].weight]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before = {name: tensor.clone() for name, tensor in net.named_parameters()}
    with sc.group_lasso(optimizer, sc.trace(net, torch.ones(2, 4)), penalty=0.5):
        (0 * net(torch.randn(4, 4))).sum().backward()
        optimizer.step()
    norms = (before["0.weight"].square().sum(1) + before["0.bias"].square()).sqrt()
    factor = (1 - 0.5 * 0.1 * 5**0.5 / norms).clamp_min(0)
    torch.testing.assert_close(net[0].weight, before["0.weight"] * factor[:, None])
    for name in ("0.bias", "1.weight", "1.bias", "3.weight"):
        assert torch.equal(net.get_parameter(name), before[name]), name


def test_groups_that_no_parameter_makes_are_passed_over():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(10, 2)

        def forward(self, x):
            return self.b(torch.cat([self.a(x).relu(), x], -1))

    net = Net()
    structure = sc.trace(net, torch.ones(1, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with sc.group_lasso(optimizer, structure, penalty=100.0):
        net(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    assert not net.a.weight.any()
