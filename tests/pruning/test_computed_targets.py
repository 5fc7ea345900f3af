"""Computed weights are pruned in what they are computed from, or left out with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import secateur as sc
from secateur.errors import BudgetError, TargetError

# -- weights that are computed -------------------------------------------------------------------------


MADE_OF = "parametrizations.weight.original"


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T


class Masked(nn.Module):
    """Has zeros of its own, so those of what it masks are not all there are."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.numel()).reshape(x.shape) % 3 > 0)


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("never seen such numbers")


def parametrized(kind: nn.Module) -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", kind, unsafe=True)
    return layer


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 5)), f"{MADE_OF}1"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 5), dim=None), f"{MADE_OF}1"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(4, 5, 3), dim=1), f"{MADE_OF}1"),
        # One weight a row: its direction is all there is of it, and only its length can be zero.
        (lambda: parametrizations.weight_norm(nn.Linear(1, 5)), f"{MADE_OF}0"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 5).bfloat16()), f"{MADE_OF}1"),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 5)), MADE_OF),
        (lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(4, 5, 3)), MADE_OF),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 5)), "weight_v"),
        (lambda: nn.utils.spectral_norm(nn.Conv1d(4, 5, 3)), "weight_orig"),
    ],
)
def test_a_computed_weight_is_pruned_in_what_it_is_computed_from(layer, expected):
    net = nn.Sequential(layer()).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    targets = sc.find_targets(net)
    assert list(targets) == [f"0.{expected}"]
    target = targets[f"0.{expected}"]
    assert (target.module, target.of) == (net[0], "weight")
    assert target.input_dim == int(not isinstance(net[0], nn.ConvTranspose1d))
    assert list(sc.find_targets(net, include="0")) == list(targets)
    after = net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())  # power iterations too


@pytest.mark.parametrize(
    ("layer", "maker"),
    [
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "_Orthogonal"),
        (lambda: parametrized(Symmetric()), "Symmetric"),
        (lambda: parametrized(Masked()), "Masked"),
    ],
)
def test_a_computed_weight_with_other_zeros_is_left_out_with_the_reason(layer, maker):
    net = nn.Sequential(nn.Linear(4, 4), layer())
    name = "1.parametrizations.weight.original"
    targets = sc.find_targets(net)
    assert list(targets) == ["0.weight"]
    assert targets.protected[name] == f"its zeros are not those of the weight that {maker} makes of it"
    note = f"note: not pruned: {name} (its zeros are not those of the weight"
    assert note in repr(sc.prune(net, sc.Magnitude(), sc.Uniform(0.5)))
    with pytest.raises(TargetError, match=rf"patterns leave; {name}: its zeros are not those"):
        sc.find_targets(net, include="1")
    assert list(sc.find_targets(net, include="*.original")) == [name]  # it was named


def test_a_parametrization_that_cannot_be_tried_is_left_out():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    layer.parametrizations.weight[0] = Picky()
    reasons = sc.find_targets(nn.Sequential(nn.Linear(2, 2), layer)).protected
    assert "that Picky makes of it" in reasons["1.parametrizations.weight.original"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_zeros_of_a_direction_are_zeros_of_the_weight(wrap):
    net = nn.Sequential(wrap(nn.Linear(8, 6)), nn.ReLU(), wrap(nn.Linear(6, 3)))
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    assert masks.sparsity == sc.sparsity(net) == 0.5
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    with masks.held(optimizer):
        for _ in range(5):
            net(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
    net(torch.randn(4, 8))
    for layer, mask in zip((net[0], net[2]), masks.values(), strict=True):
        assert torch.equal(layer.weight != 0, mask)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_row_that_would_be_emptied_under_weight_norm_is_an_error(wrap):
    net = nn.Sequential(nn.Linear(3, 4), wrap(nn.Linear(4, 3)))
    with torch.no_grad():
        next(t for t in sc.find_targets(net, include="1").values()).weight[1] *= 1e-3
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(BudgetError, match=r"^1\..*: a whole row would be zero, .* NaN \(0/0\); take less"):
        sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert sc.prune(net, sc.Magnitude(), sc.Uniform(0.25)).sparsity == 0.25
