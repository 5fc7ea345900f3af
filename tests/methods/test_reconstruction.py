import copy
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.comparing import error
from networks.drawn import randn
from networks.refitted import combined, pair
from secateur.methods import fitted_layer
from secateur.methods.reconstruction import reconstruct


@pytest.mark.parametrize("bias", [False, True])
def test_a_combination_of_others_is_made_up_for(bias):
    x = randn(40, 5)
    model, dense, structure = pair(combined(bias), x, {0: [2]})
    before = copy.deepcopy(model[1].weight)
    assert error(model, dense, x) > 0.1
    refit = reconstruct(model, dense, structure, [x], ridge=1e-12)
    assert error(model, dense, x) < 1e-6
    wanted = dense[1].weight[:, :2] + dense[1].weight[:, 2:] * torch.tensor([[3, -0.5]])
    assert torch.allclose(model[1].weight[:, :2], wanted, atol=1e-6)
    assert torch.equal(model[1].weight[:, 2], torch.zeros(2).double())
    assert torch.equal(model[0].weight, torch.cat([dense[0].weight[:2], torch.zeros(1, 5)]))
    assert list(refit.layers) == ["1"]
    assert not refit.skipped
    assert refit.layers["1"][0] > 0.01
    assert refit.layers["1"][1] < 1e-9
    assert not torch.equal(before, model[1].weight)
    assert re.fullmatch(r"1: error \d+\.\d{3}% -> 0\.000%", repr(refit))


def test_the_closed_form_with_a_ridge():
    x = randn(30, 5)
    model, dense, structure = pair(combined(True), x, {0: [2]})
    seen = model[0](x)[:, :2].detach()
    target = dense(x).detach()
    old, ridge = model[1].weight[:, :2].detach().clone(), 0.3
    reconstruct(model, dense, structure, list(x.split(7)), ridge=ridge)
    centred = seen - seen.mean(0)
    pull = ridge * centred.square().sum(0).mean()
    left = centred.T @ centred + pull * torch.eye(2)
    right = centred.T @ (target - target.mean(0)) + pull * old.T
    weight = torch.linalg.solve(left, right).T
    assert torch.allclose(model[1].weight[:, :2], weight, atol=1e-10)
    assert torch.allclose(model[1].bias, (target - seen @ weight.T).mean(0), atol=1e-10)


def test_a_huge_ridge_leaves_the_weights_and_moves_the_bias():
    x = randn(40, 5) + 1
    model, dense, structure = pair(combined(True), x, {0: [2]})
    before = model[1].weight.detach().clone()
    reconstruct(model, dense, structure, [x], ridge=1e15)
    assert torch.allclose(model[1].weight, before, rtol=1e-12, atol=0)
    assert torch.allclose(model(x).mean(0), dense(x).mean(0))
    model, dense, structure = pair(combined(False), x.float(), {0: [2]}, torch.float32)
    before = model[1].weight.detach().clone()
    reconstruct(model, dense, structure, [x.float()], ridge=1e15)
    assert torch.equal(model[1].weight, before)


@pytest.mark.parametrize("ridge", [0, 1e-8])
def test_inputs_that_never_vary_are_left_alone(ridge):
    x = randn(40, 5)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias[3] = -100  # never runs
        model[0].weight[1] = model[0].weight[0]
        model[0].bias[1] = model[0].bias[0]  # a twin: the Gram matrix is singular
    model, dense, structure = pair(model, x, {0: [2]})
    before = model[2].weight.detach().clone()
    refit = reconstruct(model, dense, structure, [x], ridge=ridge)
    assert torch.equal(model[2].weight[:, 3], before[:, 3])
    change = (model[2].weight - before).detach()
    assert torch.allclose(change[:, 0], change[:, 1], atol=1e-6)  # the smallest change
    assert change.abs().max() < 10
    assert refit.layers["2"][1] <= refit.layers["2"][0]


class Twins(nn.Module):
    """Channels 1 and 2 of the first convolution are one; the second reads them."""

    def __init__(self, first, second, bias):
        super().__init__()
        self.first, self.second = first, second
        with torch.no_grad():
            first.weight[2] = first.weight[1]
            if bias:
                first.bias[2] = first.bias[1]

    def forward(self, x):
        return self.second(F.relu(self.first(x), inplace=True)).relu_()


CONVS = {
    "1d": (nn.Conv1d, (2, 12), {"kernel_size": 3, "padding": 1}),
    "2d": (nn.Conv2d, (2, 6, 7), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    "2d same": (nn.Conv2d, (2, 6, 7), {"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2)}),
    "2d reflect": (nn.Conv2d, (2, 8, 8), {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "3d": (nn.Conv3d, (2, 4, 5, 4), {"kernel_size": (2, 1, 3), "padding": (0, 1, 1), "dilation": (2, 1, 1)}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("positions", [7, 10_000])
def test_twin_channels_of_convolutions(kind, bias, positions, monkeypatch):
    monkeypatch.setattr(fitted_layer, "POSITIONS", positions)
    monkeypatch.setattr(fitted_layer, "_CHUNK", 3000)  # several chunks
    conv, shape, options = CONVS[kind]
    torch.manual_seed(0)
    model = Twins(conv(2, 4, 1, bias=bias), conv(4, 3, bias=bias, **options), bias)
    x = randn(20, *shape)
    model, dense, structure = pair(model, x[:2], {0: [2]})
    assert error(model, dense, x) > 1e-3
    refit = reconstruct(model, dense, structure, x.split(10), ridge=1e-11)
    assert error(model, dense, x) < 1e-6
    assert not model.second.weight[:, 2].any()
    assert refit.layers["second"][1] < 1e-9 < refit.layers["second"][0]
    wanted = dense.second.weight[:, 1] + dense.second.weight[:, 2]
    assert torch.allclose(model.second.weight[:, 1], wanted, atol=1e-5)


def test_drawn_positions_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(fitted_layer, "POSITIONS", 5)
    x = randn(6, 2, 9, 9)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    results = []
    for seed in (1, 2):
        model, dense, structure = pair(copy.deepcopy(net), x, {0: [0, 1]})
        torch.manual_seed(seed)
        reconstruct(model, dense, structure, [x])
        results.append(model[2].weight)
    assert torch.equal(*results)


def test_layers_in_running_order_see_earlier_ones_refitted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(4, 5)

        def forward(self, x):
            return self.b(self.c(self.a(x)[..., :4]))

    torch.manual_seed(0)
    x = randn(8, 3, 4)  # a Linear on sequences
    net = Net().double()
    with torch.no_grad():
        net.a.weight[1] = net.a.weight[0] + net.a.weight[2]
        net.c.weight[3] = 2 * net.c.weight[4]
    model, dense = net, copy.deepcopy(net)
    structure = sc.trace(model, x)
    with torch.no_grad():
        for tensor in (model.a.weight[1], model.a.bias[1], model.c.weight[:, 1]):
            tensor.zero_()
        for tensor in (model.c.weight[3], model.c.bias[3], model.b.weight[:, 3]):
            tensor.zero_()
    refit = reconstruct(model, dense, structure, [x], ridge=1e-12)
    assert list(refit.layers) == ["c", "b"]
    assert error(model, dense, x) < 1e-6
    assert not model.c.weight[3].any()
    assert not model.c.bias[3].any()


def test_a_layer_that_runs_twice_uses_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.read = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, y=None):
            first = self.read(self.a(x) + self.b(x))
            return first + self.read(input=self.a(-x) * 2 - self.b(x))

    torch.manual_seed(0)
    x = randn(10, 3)
    model, dense, structure = pair(Twice(), x, {0: [1, 3]})
    inputs, outputs = [], []
    model.read.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    dense.read.register_forward_hook(lambda _, args, output: outputs.append(output))
    with torch.no_grad():
        model(x)
        dense(x)
    seen = F.pad(torch.cat(inputs)[:, [0, 2]], (0, 1), value=1.0)
    best = torch.linalg.lstsq(seen, torch.cat(outputs)).solution.T
    reconstruct(model, dense, structure, [(x, torch.zeros(10))], ridge=0)
    assert torch.allclose(model.read.weight[:, [0, 2]], best[:, :2])
    assert torch.allclose(model.read.bias, best[:, 2])


def test_residual_stream_and_modes_and_gradients():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.one = nn.Conv2d(6, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.two = nn.Conv2d(8, 6, 3, padding=1, bias=False)
            self.head = nn.Linear(6, 4)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.two(self.norm(self.one(x)).relu_())
            return self.head(self.drop(x).mean((2, 3)))

    torch.manual_seed(0)
    model = Block()
    model.norm.weight.data.uniform_(0.5, 2)
    dense = copy.deepcopy(model)
    x = torch.randn(64, 3, 8, 8)
    masks = sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=(structure := sc.trace(model, x[:2])))
    before = (model.eval()(x) - dense.eval()(x)).square().mean()
    model.train()
    refit = reconstruct(model, dense, structure, list(x.split(16)), masks=masks)
    assert set(refit.layers) == {"one", "two", "head"}
    assert not refit.skipped
    assert model.training
    assert not dense.training
    assert model.drop.training
    assert (model.eval()(x) - dense(x)).square().mean() < before / 2
    masks.check()
    assert all(
        not m._forward_hooks and not m._forward_pre_hooks for m in [*model.modules(), *dense.modules()]
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    small, _ = sc.compact(model, x[:2])
    assert torch.allclose(small(x), model(x), atol=1e-4)


def test_half_precision_and_channels_last():
    x = torch.randn(32, 3, 6, 6).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    plain, dense, structure = pair(copy.deepcopy(net), x, {0: [0, 1, 2]}, torch.float32)
    reconstruct(plain, dense, structure, [x])
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    last, dense, structure = pair(last, x, {0: [0, 1, 2]}, torch.float32)
    reconstruct(last, dense, structure, [x])
    assert torch.allclose(last[2].weight, plain[2].weight, atol=1e-5)
    low, dense, structure = pair(net, x.bfloat16(), {0: [0, 1, 2]}, torch.bfloat16)
    refit = reconstruct(low, dense, structure, [x.bfloat16()])
    assert low[2].weight.dtype == torch.bfloat16
    assert refit.layers["2"][1] <= refit.layers["2"][0]


# -- what always holds ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.booleans(),
    st.sampled_from([0, 1e-8, 1e-3, 1.0, 1e6]),
    st.integers(1, 30),
    st.integers(0, 99),
)
def test_no_layer_gets_worse_and_zeros_stay(hidden, bias, ridge, examples, seed):
    torch.manual_seed(seed)
    widths = [3, *hidden, 2]
    net = nn.Sequential()
    for i, o in itertools.pairwise(widths):
        net.extend([nn.Linear(i, o, bias=bias), nn.Tanh()])
    x = randn(examples, 3, seed=seed)
    net, dense = net.double(), copy.deepcopy(net.double())
    structure = sc.trace(net, randn(2, 3))
    if not structure.groups:
        return
    masks = sc.prune(net, sc.Random(seed), sc.Global(0.5), structure=structure)
    refit = reconstruct(net, dense, structure, list(x.split(8)), ridge=ridge, masks=masks)
    assert not refit.skipped
    assert all(new <= old + 1e-12 for old, new in refit.layers.values())
    masks.check()
    assert all(torch.isfinite(p).all() for p in net.parameters())


# -- real data -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_fashion_mnist_with_a_fifth_of_the_neurons(need):
    need("fashion-mnist/train-images-idx3-ubyte.gz")
    from secateur.data import load_data
    from secateur.models import mlp

    data = load_data("fashion-mnist", validation=5000, download=False)
    torch.manual_seed(0)
    model = mlp.fashion_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    for _ in range(2):
        for index in torch.randperm(len(data.train)).split(256):
            loss = F.cross_entropy(model(data.train.inputs[index]), data.train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def accuracy():
        right = model(data.validation.inputs).argmax(1) == data.validation.labels
        return float(right.float().mean())

    dense, full = copy.deepcopy(model), accuracy()
    calibration = list(data.train.inputs[:10_000].split(1000))
    structure = sc.trace(model, data.train.inputs[:2])
    masks = sc.prune(model, sc.ActivationNorm(), sc.Uniform(0.8), data=calibration, structure=structure)
    before = accuracy()
    refit = reconstruct(model, dense, structure, calibration, masks=masks)
    assert accuracy() >= before + 0.10
    assert accuracy() >= full - 0.06
    assert len(refit.layers) == 4
    masks.check()
