import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, CriterionError


def fitted_error(x: torch.Tensor, y: torch.Tensor, kept: list[int]) -> float:
    """The error of the least squares of y on the columns kept of x and a bias, over y's about its mean."""
    x, y = x - x.mean(0), y - y.mean(0)
    rest = y - x[:, kept] @ torch.linalg.lstsq(x[:, kept], y, driver="gelsd").solution if kept else y
    return float(rest.square().sum() / y.square().sum())


def network(seed: int, units: int = 6, bias: bool = True) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, units), nn.ReLU(), nn.Linear(units, 3, bias=bias)).double()
    return net, torch.randn(64, 5, dtype=torch.float64)


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_each_score_is_the_error_of_the_refitted_layer_when_the_unit_goes(seed):
    net, x = network(seed)
    scores = sc.Reconstruction(ridge=1e-12)(sc.trace(net, x[:2]), data=[x])["0 -> 2"]
    hidden, outputs = net[:2](x).detach(), net(x).detach()
    kept = list(range(6))
    for unit in scores.argsort(stable=True).tolist():
        errors = {u: fitted_error(hidden, outputs, [k for k in kept if k != u]) for u in kept}
        assert errors[unit] == pytest.approx(min(errors.values()), abs=1e-6)  # the one missed least
        kept.remove(unit)
        assert float(scores[unit]) == pytest.approx(errors[unit], abs=1e-6)


def test_units_that_repeat_others_go_for_nothing():
    """Six units, of which three are copies of the others, scaled: three can go for nothing."""
    net, x = network(1)
    with torch.no_grad():
        net[0].weight[3:], net[0].bias[3:] = 2 * net[0].weight[:3], 2 * net[0].bias[:3]
    scores = sc.Reconstruction(ridge=1e-12)(sc.trace(net, x[:2]), data=[x])["0 -> 2"]
    gone = scores.argsort()[:3].tolist()
    assert sorted(unit % 3 for unit in gone) == [0, 1, 2]
    assert float(scores[gone].max()) == pytest.approx(0, abs=1e-6)


def test_of_convolutions_it_is_whole_channels_in_every_reader():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.make = nn.Conv2d(2, 4, 3, padding=1)
            self.left, self.right = nn.Conv2d(4, 3, 3), nn.Conv2d(4, 2, 1, bias=False)
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            h = self.make(x).relu()
            return self.head(torch.cat([self.left(h).mean((2, 3)), self.right(h).mean((2, 3))], 1))

    net, x = Net().double(), torch.randn(32, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        net.make.weight[3], net.make.bias[3] = net.make.weight[1], net.make.bias[1]
    structure = sc.trace(net, x[:1], kwargs={})
    part = next(name for name in structure.groups if name.startswith("make"))
    scores = sc.Reconstruction(ridge=1e-10)(structure, data=[x])[part]
    assert {int(scores.argmin())} <= {1, 3}
    assert float(scores.min()) == pytest.approx(0, abs=1e-6)
    windows = nn.functional.unfold(net.make(x).relu(), 3).transpose(1, 2).flatten(0, 1).detach()
    wide = net.right(net.make(x).relu()).movedim(1, -1).flatten(0, 2).detach()
    pixels = net.make(x).relu().movedim(1, -1).flatten(0, 2).detach()
    kept = sorted(set(range(4)) - set(scores.argsort()[:2].tolist()))
    left = net.left(net.make(x).relu()).movedim(1, -1).flatten(0, 2).detach()
    error = fitted_error(windows, left, [9 * c + k for c in kept for k in range(9)])
    rest = wide - pixels[:, kept] @ torch.linalg.lstsq(pixels[:, kept], wide, driver="gelsd").solution
    error += float(rest.square().sum() / wide.square().sum())
    assert float(scores.sort().values[1]) == pytest.approx(error, rel=1e-3)


def test_the_first_two_to_go_are_among_the_best_pairs():
    net, x = network(3)
    outputs = net(x).detach()
    errors = {}
    for pair in itertools.combinations(range(6), 2):
        kept = [u for u in range(6) if u not in pair]
        errors[pair] = fitted_error(net[:2](x).detach(), outputs, kept)
    scores = sc.Reconstruction(ridge=1e-12)(sc.trace(net, x[:2]), data=[x])["0 -> 2"]
    chosen = tuple(sorted(scores.argsort()[:2].tolist()))
    assert errors[chosen] <= sorted(errors.values())[2]  # greedy, so among the best


def test_what_does_not_fit_is_refused():
    net, x = network(0)
    structure = sc.trace(net, x[:2])
    with pytest.raises(BudgetError, match="ridge is 0"):
        sc.Reconstruction(ridge=0)
    with pytest.raises(CriterionError, match="list of batches"):
        sc.Reconstruction()(structure, data=iter([x]))
    with pytest.raises(CriterionError, match="list of batches"):
        sc.Reconstruction()(structure)


def test_the_network_given_is_not_changed():
    net, x = network(0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sc.Reconstruction()(sc.trace(net, x[:2]), data=[x])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
