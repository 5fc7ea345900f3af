import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, TargetError
from secateur.methods.variational_dropout import divergence


def test_the_divergence_is_that_of_the_paper():
    """-KL = k1 sigmoid(k2 + k3 log alpha) - 0.5 log(1 + 1 / alpha) - k1, and falls as noise grows."""
    log_alpha = torch.linspace(-8, 8, 33, dtype=torch.float64)
    paper = (
        0.63576 * torch.sigmoid(1.87320 + 1.48695 * log_alpha)
        - 0.5 * (1 + 1 / log_alpha.exp()).log()
        - 0.63576
    )
    torch.testing.assert_close(divergence(log_alpha), -paper)
    assert (divergence(log_alpha).diff() < 0).all()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_outputs_have_the_mean_and_the_variance_of_sums_of_noisy_weights(kind):
    torch.manual_seed(0)
    if kind == "linear":
        net, x = nn.Sequential(nn.Linear(4, 3), nn.Identity()), torch.randn(1, 4)
    else:
        net, x = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Identity()), torch.randn(1, 2, 4, 4)
    noisy = sc.VariationalDropout(net, examples=1, start=-1.0)
    noisy.network.train()
    torch.manual_seed(1)
    drawn = torch.cat([noisy.network(x) for _ in range(20_000)])
    torch.testing.assert_close(drawn.mean(0, keepdim=True), net(x), atol=0.15, rtol=0)
    with torch.no_grad():
        net[0].weight.fill_(float(torch.tensor(-1.0).exp()))
        net[0].bias.zero_()
    torch.testing.assert_close(drawn.var(0, keepdim=True), net(x.square()), rtol=0.15, atol=0.02)


def test_weights_that_are_mostly_noise_go_and_the_rest_is_the_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    noisy = sc.VariationalDropout(net, examples=10, start=-20.0)
    with torch.no_grad():
        noisy.layers["0"].log_variance[0, 1] = 10.0
    work, masks = noisy.fold()
    assert masks["0.weight"].logical_not().nonzero().tolist() == [[0, 1]]
    assert work[0].weight[0, 1] == 0
    assert [type(module) for module in work] == [nn.Linear, nn.ReLU, nn.Linear]
    x = torch.randn(5, 4)
    torch.testing.assert_close(work(x), noisy.network.eval()(x))
    assert net[0].weight[0, 1] != 0


def test_what_the_data_do_not_need_goes():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 1), nn.Identity()), torch.randn(256, 8)
    y = 2 * x[:, :1] - x[:, 1:2]
    noisy = sc.VariationalDropout(net, examples=256, start=-5.0, cut=2.0)
    optimizer = torch.optim.Adam(noisy.network.parameters(), lr=0.02)
    with noisy.trained(optimizer) as network:
        for _ in range(1500):
            optimizer.zero_grad()
            (0.5 * (network(x) - y).square().mean()).backward()
            optimizer.step()
    work, masks = noisy.fold()
    assert masks["0.weight"][0, :2].all()
    assert int(masks["0.weight"].sum()) <= 4
    assert nn.functional.mse_loss(work(x), y) < 0.05


def test_what_cannot_be_is_refused():
    net = nn.Sequential(nn.Linear(4, 3), nn.Identity())
    with pytest.raises(BudgetError, match="examples is 0"):
        sc.VariationalDropout(net, examples=0)
    with pytest.raises(TargetError, match="no Linear or Conv layer"):
        sc.VariationalDropout(nn.Sequential(nn.LSTM(4, 4)), examples=10)
    noisy, other = sc.VariationalDropout(net, examples=10), torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TargetError, match="does not train the variances"), noisy.trained(other):
        pass
