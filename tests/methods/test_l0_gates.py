import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, TargetError
from secateur.methods.l0_gates import gate, open_share


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)


def test_gates_are_those_of_the_paper():
    """sigmoid((log u - log(1 - u) + log alpha) / beta), stretched to (-0.1, 1.1) and cut to [0, 1]."""
    u, log_alpha = torch.tensor([0.5, 0.9, 0.01]), torch.tensor([0.0, 1.0, -1.0])
    soft = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / (2 / 3)) * 1.2 - 0.1
    torch.testing.assert_close(gate(log_alpha, u), soft.clamp(0, 1))
    torch.testing.assert_close(gate(torch.tensor([0.0, 9.0, -9.0])), torch.tensor([0.5, 1.0, 0.0]))


def test_the_share_of_open_gates_is_what_is_drawn():
    log_alpha = torch.tensor([-2.0, 0.0, 1.5])
    torch.manual_seed(0)
    drawn = gate(log_alpha.expand(100_000, 3), torch.rand(100_000, 3).clamp(1e-6, 1 - 1e-6))
    torch.testing.assert_close((drawn > 0).float().mean(0), open_share(log_alpha), atol=0.01, rtol=0)


def test_the_penalty_is_the_gradient_of_the_expected_number_of_open_gates():
    net, x = network()
    gates = sc.L0Gates(net, x[:2], penalty=0.3)
    (log_alpha,) = gates.network.log_alpha.parameters()
    optimizer = torch.optim.SGD(gates.network.parameters(), lr=1.0)
    wanted = torch.autograd.grad(0.3 * open_share(log_alpha).sum(), log_alpha)[0]
    before = log_alpha.detach().clone()
    with gates.trained(optimizer):
        (0 * gates.network(x)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(before - log_alpha, wanted)


def test_units_that_do_nothing_are_shut_and_go():
    net, x = network()
    with torch.no_grad():
        net[2].weight[:, :8] = 0
    y = net(x).detach()
    gates = sc.L0Gates(net, x[:2], penalty=0.01)
    optimizer = torch.optim.Adam(gates.network.parameters(), lr=0.05)
    with gates.trained(optimizer) as trained:
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.mse_loss(trained(x), y).backward()
            optimizer.step()
    gates.network.eval()
    small, proof = gates.fold()
    assert proof.parameters[1] < proof.parameters[0]
    torch.testing.assert_close(small(x), gates.network(x), rtol=1e-4, atol=1e-5)


def test_a_state_dict_holds_the_gates():
    net, x = network()
    gates, again = (sc.L0Gates(network()[0], x[:2]) for _ in range(2))
    next(gates.network.log_alpha.parameters()).data.normal_()
    again.network.load_state_dict(gates.network.state_dict())
    for name, values in gates.gates.items():
        assert torch.equal(values, again.gates[name])
    assert net is not None


def test_what_cannot_be_is_refused():
    net, x = network()
    with pytest.raises(BudgetError, match="penalty is -1"):
        sc.L0Gates(net, x[:2], penalty=-1)
    gates, other = sc.L0Gates(net, x[:2]), torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TargetError, match="does not train the gates"), gates.trained(other):
        pass
