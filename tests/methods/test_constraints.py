"""prune_to: the constraint is met with as few units as it takes, and the model stays."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from networks.plain import Coder
from secateur.errors import BudgetError, TargetError
from secateur.measure.macs import count_macs


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip


X = torch.randn(2, 3, 9, 10)


@pytest.mark.parametrize("name", ["macs", "parameters"])
@pytest.mark.parametrize("left", [0.8, 0.5, 0.2])
def test_the_share_left_is_met_and_not_by_far(net, name, left):
    before = copy.deepcopy(net.state_dict())
    small, proof = sc.prune_to(net, X, **{name: left})
    old, new = getattr(proof, name)
    assert new <= left * old
    assert new > 0.6 * left * old  # one unit more would not have been much
    assert proof.max_error < 1e-9
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    assert small(X).shape == (2, 5)


def test_one_unit_fewer_removed_would_not_do(net):
    _, proof = sc.prune_to(net, X, parameters=0.5, criterion=sc.L1Norm())
    removed = sum(number for number, _ in proof.removed.values())
    masked = copy.deepcopy(net)
    structure = sc.trace(masked, X)
    sc.prune(masked, sc.L1Norm(), sc.Global((removed - 1) / 20), structure=structure)
    _, less = sc.compact(masked, X)
    assert less.parameters[1] > 0.5 * less.parameters[0]


def test_latency_is_measured(net):
    _, proof = sc.prune_to(net, X, latency_ms=1000.0)
    assert proof.parameters[0] == proof.parameters[1]  # met as it is: nothing goes
    with pytest.raises(BudgetError, match="latency_ms=1e-06 cannot be met"):
        sc.prune_to(net, X, latency_ms=1e-6)


def test_the_rest_is_as_in_prune(net):
    _, proof = sc.prune_to(net, X, parameters=0.7, include="0", round_to=4, min_kept=3)
    assert list(proof.removed) == ["0 -> 2"]
    assert (8 - proof.removed["0 -> 2"][0]) % 4 == 0
    with pytest.raises(TargetError, match="matches no group"):
        sc.prune_to(net, X, parameters=0.7, include="nothing")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "exactly one of macs, parameters and latency_ms; got none"),
        ({"macs": 0.5, "parameters": 0.5}, "exactly one of"),
        ({"macs": 1.5}, "share of the dense network's, between 0 and 1"),
        ({"latency_ms": -1.0}, "positive number of milliseconds"),
        ({"parameters": 0.001}, "cannot be met"),
    ],
)
def test_what_cannot_be_is_one_clear_error(net, limits, message):
    with pytest.raises(BudgetError, match=message):
        sc.prune_to(net, X, **limits)


def test_min_kept_is_a_floor_of_each_group_and_the_rest_is_made_up_elsewhere():
    """The smaller group keeps all it has; in one of the others little is worth keeping."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4),
        nn.ReLU(),
        nn.Linear(4, 30),
        nn.ReLU(),
        nn.Linear(30, 30),
        nn.ReLU(),
        nn.Linear(30, 2),
    )
    with torch.no_grad():
        net[2].weight *= 0.1
    x = torch.randn(5, 3)
    by_hand = copy.deepcopy(net)
    structure = sc.trace(by_hand, x)
    sc.prune(by_hand, sc.L2Norm(), sc.PerLayer({"2": 0.5, "4": 0.5}), structure=structure)
    possible = sc.compact(by_hand, x)[1].parameters
    least = possible[1] / possible[0]
    _, proof = sc.prune_to(net, x, parameters=least, criterion=sc.L2Norm(), min_kept=15)
    assert proof.removed == {"2 -> 4": (15, 30), "4 -> 6": (15, 30)}


@pytest.mark.filterwarnings("error")
def test_rounding_is_no_reason_to_warn(net):
    assert sc.prune_to(net, X, parameters=0.7, round_to=4)[1].removed


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_macs_of_a_recurrent_network_meet_the_constraint(kind):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.out = kind(6, 24, batch_first=True), nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.recurrent(x)[0][:, -1])

    x = torch.randn(2, 7, 6)
    model = Net().eval()
    small, proof = sc.prune_to(model, x, macs=0.5)
    assert proof.macs == (count_macs(model, x).dense, count_macs(small, x).dense)
    assert 0.4 < proof.macs[1] / proof.macs[0] <= 0.5


def test_a_network_without_multiply_adds_cannot_be_limited_in_them():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.scale).sum(-1, keepdim=True)

    batches = [(torch.randn(4, 6), torch.zeros(4))]
    with pytest.raises(BudgetError, match="Table has no multiply-adds to limit; give parameters= instead"):
        sc.prune_to(Table(), torch.randn(2, 6), macs=0.5)
    with pytest.raises(BudgetError, match="Table has no multiply-adds"):
        sc.prune_greedily(Table(), torch.randn(2, 6), batches, macs=0.5)


def test_other_methods_stay_equal_too():
    net, x = Coder(), torch.randn(5, 3)
    small, proof = sc.prune_to(net, x, parameters=0.8, methods=("forward", "encode"))
    assert "breaks encode()" in proof.kept["b -> c"]
    assert small.encode(x).shape == (5, 6)
    assert proof.removed.keys() == {"a -> b"}
