"""Weights chosen and the others moved: against closed forms, least squares, and on a trained network."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.data import load_data
from secateur.errors import BudgetError, CriterionError, MaskError, NonFiniteError, TargetError
from secateur.methods.sparsegpt import solved
from secateur.training.fit import fit
from secateur.training.settings import Training


def correlated(number, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(number, width, generator=generator) @ mix


def solution(weight, x, budget, damping=0.0):
    masked = torch.zeros_like(weight, dtype=torch.bool)
    taken = round(budget.sparsity * weight.numel()) if isinstance(budget, sc.Uniform) else budget
    return solved(weight.double(), x.double().T @ x.double(), taken, masked, damping)


def test_inputs_that_have_nothing_in_common_leave_the_others_where_they_are():
    weight = torch.tensor([[0.1, -3.0, 2.0, 0.5], [1.0, 0.2, -0.3, 4.0]])
    new, pruned = solution(weight, torch.eye(4), sc.Uniform(0.5))
    wanted = torch.tensor([[0.0, -3.0, 2.0, 0.0], [1.0, 0.0, 0.0, 4.0]])
    assert torch.allclose(new.float(), wanted)
    assert torch.equal(pruned, wanted == 0)


def test_one_weight_is_made_up_for_as_the_closed_form_says():
    """Optimal brain surgeon: w - w_q / inv(H)_qq inv(H)_:,q, where q stands first and so all others move."""
    x, weight = correlated(50, 3), torch.tensor([[0.01, 1.0, 2.0]])
    new, pruned = solution(weight, x, sc.Uniform(1 / 3))
    assert pruned.tolist() == [[True, False, False]]
    inverse = (x.double().T @ x.double()).inverse()
    wanted = weight.double() - weight[0, 0] / inverse[0, 0] * inverse[0]
    assert torch.allclose(new, wanted, atol=1e-9)
    assert new[0, 0] == 0


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("shape", [(3, 5), (7, 130), (5, 300)])
def test_the_share_is_exact(sparsity, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    new, pruned = solution(weight, correlated(400, shape[1]), sc.Uniform(sparsity), 0.01)
    assert int(pruned.sum()) == round(sparsity * weight.numel())
    assert not new[pruned].any()
    if sparsity == 0:
        assert torch.equal(new, weight.double())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [sc.Uniform(0.5), sc.Uniform(0.7), sc.NM(2, 4)], ids=str)
def test_the_error_is_near_that_of_least_squares_on_the_same_mask(seed, budget):
    x = correlated(2000, 200, seed)
    weight = torch.randn(40, 200, generator=torch.Generator().manual_seed(seed))
    new, pruned = solution(weight, x, budget, 0.01)
    y, x = x.double() @ weight.double().T, x.double()
    best = torch.zeros_like(new)
    for row in range(len(weight)):
        kept = ~pruned[row]
        best[row, kept] = torch.linalg.lstsq(x[:, kept], y[:, row, None]).solution[:, 0]

    def error(matrix):
        return float((x @ matrix.T - y).square().sum())

    assert error(best) <= error(new) <= 1.05 * error(best)
    assert error(new) < 0.6 * error(weight.double() * ~pruned)


def test_two_of_four_stay_in_every_row():
    _, pruned = solution(torch.randn(6, 132), correlated(300, 132), sc.NM(2, 4), 0.01)
    assert (pruned.view(6, -1, 4).sum(2) == 2).all()


@pytest.fixture(scope="module")
def trained():
    data = load_data("digits", validation=200)
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU())
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(16 * 36, 48), nn.ReLU(), nn.Linear(48, 10))
    fit(net, data.train, data.validation, Training(epochs=8, lr=3e-3, lr_schedule="cosine"))
    return net.eval(), data.train.inputs[:600], data.test.inputs


def off(net, dense, x):
    with torch.no_grad():
        return float((net(x) - dense(x)).square().sum() / dense(x).square().sum())


@pytest.mark.parametrize("budget", [sc.Uniform(0.6), sc.Uniform(0.8)], ids=str)
def test_a_trained_network_loses_less_than_by_wanda_and_by_magnitude(trained, budget):
    dense, x, test = trained
    nets = [copy.deepcopy(dense) for _ in range(3)]
    masks = sc.sparsegpt(nets[0], budget, x.split(200))
    sc.prune(nets[1], sc.Wanda(), budget, data=[x])
    sc.prune(nets[2], sc.Magnitude(), budget)
    errors = [off(net, dense, test) for net in nets]
    assert errors[0] < 0.6 * min(errors[1:]), errors
    assert [*masks] == ["0.0.weight", "0.2.weight", "2.weight", "4.weight"]
    for mask in masks.values():
        assert int((~mask).sum()) == round(budget.sparsity * mask.numel())
    masks.check()
    assert not torch.equal(nets[0][4].bias, dense[4].bias)


def test_nm_runs_over_input_channels_and_names_what_stays_dense(trained):
    dense, x, _ = trained
    net = copy.deepcopy(dense)
    masks = sc.sparsegpt(net, sc.NM(2, 4), [x])
    assert [*masks] == ["0.2.weight", "2.weight", "4.weight"]
    assert any(note.startswith("0.0.weight: stays dense: no input dim") for note in masks.notes)
    assert (masks["0.2.weight"].view(16, 1, 4, 9).sum(2) == 2).all()
    assert torch.equal(net[0][0].weight, dense[0][0].weight)


def test_earlier_masks_stay_and_count(trained):
    dense, x, _ = trained
    net = copy.deepcopy(dense)
    first = sc.prune(net, sc.Magnitude(), sc.Uniform(0.3))
    masks = sc.sparsegpt(net, sc.Uniform(0.6), [x], masks=first)
    assert all(not (masks[name] & ~first[name]).any() for name in masks)
    assert masks.sparsity == pytest.approx(0.6, abs=1e-3)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MaskError, match=r"0\.0\.weight: masks= zeroes \d+ of its weights"):
        sc.sparsegpt(net, sc.Uniform(0.2), [x], masks=masks)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_inputs_that_are_always_zero_take_their_weights_along():
    net, x = nn.Linear(6, 3), torch.randn(50, 6)
    x[:, 2] = 0
    masks = sc.sparsegpt(net, sc.Uniform(0.5), [x])
    assert not net.weight[:, 2].any()
    assert not masks["weight"][:, 2].any()


def test_inputs_that_depend_on_each_other_need_damping():
    net, x = nn.Linear(6, 3), torch.randn(50, 2) @ torch.randn(2, 6)
    before = net.weight.clone()
    with pytest.raises(BudgetError, match="damping=0: inputs that depend on each other"):
        sc.sparsegpt(net, sc.Uniform(0.5), [x], damping=0)
    assert torch.equal(net.weight, before)
    assert sc.sparsegpt(net, sc.Uniform(0.5), [x]).sparsity == 0.5


def test_shared_and_recurrent_weights_stay_dense_and_are_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lstm, self.out = nn.Linear(6, 6), nn.LSTM(6, 6), nn.Linear(6, 6)
            self.out.weight = self.a.weight
            self.last = nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.out(self.lstm(self.a(x))[0]))

    net, x = Tied(), torch.randn(5, 7, 6)
    masks = sc.sparsegpt(net, sc.Uniform(0.5), [x])
    assert [*masks] == ["last.weight"]
    assert any("a.weight: stays dense: its weight is used elsewhere too" in note for note in masks.notes)
    assert any("LSTM is no plain Linear" in note for note in masks.notes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": sc.Global(0.5)}, BudgetError, "takes Uniform or NM, not Global"),
        ({"damping": -1}, BudgetError, "damping is -1"),
        ({"data": iter([torch.ones(2, 6)])}, CriterionError, "several times"),
        ({"data": []}, CriterionError, "data"),
        (
            {"data": [torch.full((2, 6), torch.nan)]},
            NonFiniteError,
            "what its layer reads holds a NaN",
        ),
        ({"include": "nothing*"}, TargetError, "nothing"),
    ],
)
def test_bad_input_is_one_error_and_changes_nothing(change, error, message):
    net = nn.Linear(6, 3)
    before = net.weight.clone()
    given = {"budget": sc.Uniform(0.5), "data": [torch.randn(8, 6)]} | change
    with pytest.raises(error, match=message):
        sc.sparsegpt(net, given.pop("budget"), given.pop("data"), **given)
    assert torch.equal(net.weight, before)


def test_a_share_of_each_row_is_refused():
    with pytest.raises(BudgetError, match=r"compares all rows of a layer; Uniform\(0\.5\) is right"):
        sc.sparsegpt(nn.Linear(8, 4), sc.Uniform(0.5, per="row"), [torch.randn(16, 8)])
