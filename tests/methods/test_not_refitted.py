"""What cannot be refitted is listed, and errors change nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.comparing import error
from networks.drawn import randn
from networks.refitted import combined, pair
from secateur.errors import (
    BudgetError,
    CriterionError,
    MaskError,
    ModelError,
    NonFiniteError,
    SecateurError,
    TargetError,
)
from secateur.graph import replay
from secateur.methods import reconstruction
from secateur.methods.reconstruction import reconstruct

# -- what cannot be refitted ---------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.make = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.raw = nn.Parameter(torch.randn(8, 2))
        self.up = nn.ConvTranspose2d(8, 2, 1)
        self.lstm = nn.LSTM(8, 3, batch_first=True)
        self.plain = nn.Linear(8, 2)
        self.unused = nn.Linear(8, 2)

    def forward(self, x):
        x = self.make(x).relu()
        y = self.grouped(x).mean() + self.up(x).mean()
        z = x.flatten(2).transpose(1, 2)
        return y + (z @ self.raw).sum() + self.lstm(z)[0].sum() + self.plain(z).sum() + self.functional(z)

    def functional(self, z):
        return F.linear(z, self.unused.weight).sum()


def test_what_cannot_be_refitted_is_listed():
    torch.manual_seed(0)
    x = randn(6, 3, 4, 4)
    model = Odd().double()
    structure = sc.trace(model, x)
    model, dense, structure = pair(model, x, {0: [0]})
    before = copy.deepcopy(model.state_dict())
    refit = reconstruct(model, dense, structure, [x])
    assert set(refit.layers) == {"plain", "lstm.weight_ih_l0"}
    assert set(refit.skipped) == {"grouped", "raw", "up.weight", "unused"}
    assert refit.skipped["grouped"] == "a convolution in 2 groups"
    assert "Odd" in refit.skipped["raw"]
    assert "never called" in refit.skipped["unused"]
    assert "skipped raw: a parameter of Odd" in repr(refit)
    assert {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])} == {
        "plain.weight",
        "plain.bias",
        "lstm.weight_ih_l0",
        "lstm.bias_ih_l0",
    }


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.make = nn.Linear(4, 6, bias=False)
        self.back = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return F.linear(self.back(self.make(x)), self.back.weight.T) @ torch.ones(6).to(x)


def test_layers_whose_weight_means_more_are_left_alone():
    x = randn(9, 4)
    scaled = nn.Sequential(nn.Linear(4, 6), Scaled(6, 3))
    shared = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 4))
    shared[3].weight = shared[1].weight
    weighted = nn.Sequential(nn.Linear(4, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)))
    for net, name, reason in (
        (scaled, "1.weight", "a parameter of Scaled"),
        (shared, "1", "used elsewhere"),
        (weighted, "1.parametrizations", "a parameter of"),
        (Tied(), "back", "used elsewhere"),
    ):
        model, dense, structure = pair(net, x, {0: [1, 2]})
        refit = reconstruct(model, dense, structure, [x])
        assert any(n.startswith(name) and reason in why for n, why in refit.skipped.items()), refit
        assert not refit.layers


def test_other_examples_in_the_dense_network():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.read = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.make(x)
            return self.read(x) if torch.compiler.is_exporting() else self.read(x[x[:, 0] > 0])

    x = randn(20, 4)
    model, dense, structure = pair(Chosen(), x, {0: [0]})
    refit = reconstruct(model, dense, structure, [x])
    assert not refit.layers
    assert "same examples" in refit.skipped["read"]


def test_masks_inside_a_layer():
    x = randn(9, 4)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    dense = copy.deepcopy(net)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.3), include="2")
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.4), structure=sc.trace(net, x), masks=masks)
    refit = reconstruct(net, dense, sc.trace(net, x), [x], masks=masks)
    assert list(refit.layers) == ["4"]
    assert "single weights" in refit.skipped["2"]
    masks.check()


def test_transformers_conv1d():
    from transformers import pytorch_utils as utils

    x = randn(12, 3, 4)
    torch.manual_seed(0)
    net = nn.Sequential(utils.Conv1D(5, 4), utils.Conv1D(2, 5))
    with torch.no_grad():
        net[0].weight[:, 2] = net[0].weight[:, 0] - net[0].weight[:, 4]
    model, dense, structure = pair(net, x, {0: [2]})
    refit = reconstruct(model, dense, structure, [x], ridge=1e-12)
    assert list(refit.layers) == ["1"]
    assert error(model, dense, x) < 1e-6
    assert not model[1].weight[2].any()


def test_nothing_pruned_is_nothing_refitted():
    x = randn(9, 4)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)).double()
    refit = reconstruct(net, copy.deepcopy(net), sc.trace(net, x), [x])
    assert refit == reconstruction.Refit({}, {})


# -- errors --------------------------------------------------------------------------------------


def refused(kind, text):
    return pytest.raises(kind, match=text)


def test_errors_are_one_line_and_change_nothing():
    x = randn(10, 5)
    model, dense, structure = pair(combined(True), x, {0: [2]})
    before = copy.deepcopy(model.state_dict())
    other = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double()
    less = nn.Sequential(nn.Linear(5, 3)).double()
    alien = sc.prune(nn.Sequential(nn.Linear(2, 2)), sc.Magnitude(), sc.Uniform(0.5))
    holed = x.clone()
    holed[3, 2] = float("nan")
    bare = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2, bias=False)).double()
    for kind, text, arguments, options in (
        (TargetError, "traced from another model", (copy.deepcopy(model), dense, structure, [x]), {}),
        (
            ModelError,
            r"0\.weight is \[4, 5\] on cpu in dense= and \[3, 5\]",
            (model, other, structure, [x]),
            {},
        ),
        (ModelError, r"1\.weight is absent in dense=", (model, less, structure, [x]), {}),
        (ModelError, r"1\.bias is absent in dense=", (model, bare, structure, [x]), {}),
        (ModelError, "lacks the same units", (model, model, structure, [x]), {}),
        (ModelError, "lacks the same units", (model, copy.deepcopy(model), structure, [x]), {}),
        (CriterionError, "without a single batch", (model, dense, structure, []), {}),
        (CriterionError, "needs data", (model, dense, structure, None), {}),
        (CriterionError, "several times", (model, dense, structure, iter([x])), {}),
        (CriterionError, "several times", (model, dense, structure, Once([x])), {}),
        (BudgetError, "ridge is -1", (model, dense, structure, [x]), {"ridge": -1}),
        (BudgetError, "ridge is nan", (model, dense, structure, [x]), {"ridge": float("nan")}),
        (NonFiniteError, "1: what it reads", (model, dense, structure, [holed]), {}),
        (MaskError, "0.weight: the mask has shape", (model, dense, structure, [x]), {"masks": alien}),
    ):
        with refused(kind, text) as found:
            reconstruct(*arguments, **options)
        assert "\n" not in str(found.value)
        assert isinstance(found.value, SecateurError)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Once:
    """Batches that are gone after the first pass, though this is no iterator."""

    def __init__(self, data):
        self.data = iter(data)

    def __iter__(self):
        return self.data


def test_an_error_in_a_later_layer_puts_earlier_ones_back(monkeypatch):
    monkeypatch.setattr(replay, "MEMORY", 0)  # each layer reads the batches anew
    torch.manual_seed(0)
    x = randn(10, 4)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    model, dense, structure = pair(net, x, {0: [0], 1: [0]})
    before = copy.deepcopy(model.state_dict())

    class Fails(Once):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([x] if self.passes < 4 else [x[:, :2]])

    with refused(ModelError, "shapes"):
        reconstruct(model, dense, structure, Fails([]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_data_that_the_model_does_not_take():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(8, 4)
    structure, dense = sc.trace(net, x), copy.deepcopy(net)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    with pytest.raises(ModelError, match=r"does not run on a batch of data= \(8, 3\) of float32"):
        sc.reconstruct(net, dense, structure, [x[:, :3]])
    with pytest.raises(CriterionError, match="was given a Tensor as data"):
        sc.reconstruct(net, dense, structure, x)
    with pytest.raises(TargetError, match="trace this very model again"):
        sc.reconstruct(dense, net, structure, [x])
    with pytest.raises(TargetError, match="structure= is a str"):
        sc.reconstruct(net, dense, "s", [x])


def test_what_has_nothing_to_do_says_so():
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(8, 4)
    refit = sc.reconstruct(net, copy.deepcopy(net), sc.trace(net, x), [x])
    assert repr(refit).startswith("nothing was refitted")
    with refused(BudgetError, "ridge is '0.1'"):
        sc.reconstruct(net, copy.deepcopy(net), sc.trace(net, x), [x], ridge="0.1")
