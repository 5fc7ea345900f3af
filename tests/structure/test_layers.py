"""What a layer is and which way its matrix lies, by hand; and a layer class of a user's own everywhere."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ModelError, TargetError
from secateur.structure import layers
from secateur.structure.layers import LayerView, layer_view, set_sizes, stored_weights

# -- the table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Linear(4, 5), {"bias": "bias", "product": "rows"}),
        (nn.Linear(4, 5, bias=False), {"bias": None}),
        (nn.Conv1d(4, 6, 3), {"kernel": 1, "channels": -2, "product": "windows", "groups": 1}),
        (nn.Conv2d(4, 6, 3, groups=2), {"kernel": 2, "channels": -3, "product": "windows", "groups": 2}),
        (nn.Conv3d(4, 6, 3), {"kernel": 3, "channels": -4, "output_dim": 0, "input_dim": 1}),
        (nn.ConvTranspose2d(4, 6, 3), {"output_dim": 1, "input_dim": 0, "product": None, "channels": -3}),
        (nn.GRU(4, 5), {"weights": ("weight_ih_l0", "weight_hh_l0"), "product": "steps", "bias": None}),
        (nn.LSTMCell(4, 5), {"weights": ("weight_ih", "weight_hh"), "product": "steps"}),
    ],
)
def test_views_of_torchs_layers(module, said):
    view = layer_view(module)
    assert view is not None
    assert {name: getattr(view, name) for name in said} == said
    assert view.cls is type(module)
    assert view.plain
    assert not view.registered
    assert view.transposed == isinstance(module, nn.ConvTranspose2d)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_is_its_base_and_says_whether_it_computes_the_same():
    named = type("Named", (nn.Linear,), {})(3, 2)
    assert layer_view(named) == layer_view(nn.Linear(3, 2))
    view = layer_view(Doubled(3, 2))
    assert view is not None
    assert (view.cls, view.plain) == (nn.Linear, False)
    projection = nn.MultiheadAttention(4, 2).out_proj
    assert layer_view(projection) == layer_view(nn.Linear(4, 4))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.BatchNorm1d(3), nn.Embedding(3, 2), nn.Bilinear(2, 3, 4)])
def test_what_is_no_layer(module):
    assert layer_view(module) is None
    assert list(stored_weights(module)) == []


def test_transformers_conv1d_is_a_linear_layer_turned():
    from transformers.pytorch_utils import Conv1D as kind

    view = layer_view(kind(5, 4))
    assert view == LayerView(kind, output_dim=1, input_dim=0, sizes={"nf": 1, "nx": 0})
    assert view.transposed
    lookalike = type("Conv1D", (nn.Module,), {})
    assert layer_view(lookalike()) is None


@pytest.mark.parametrize(
    "module", [nn.Linear(4, 5), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(4, 6, 3)]
)
def test_a_weight_as_a_matrix_and_back(module):
    view = layer_view(module)
    assert view is not None
    matrix = view.matrix(module.weight)
    assert matrix.shape == (module.weight.shape[view.output_dim], module.weight.numel() // len(matrix))
    assert torch.equal(view.unmatrix(matrix, module.weight), module.weight)
    assert view.number_of_inputs(module.weight) == 4


def test_the_matrix_of_a_turned_weight_by_hand():
    view = LayerView(nn.Linear, output_dim=1, input_dim=0)
    assert view.matrix(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [[1, 4], [2, 5], [3, 6]]


def test_which_weights_multiply_what_a_module_is_called_with():
    view = layer_view(nn.LSTM(4, 5, num_layers=2, bidirectional=True))
    assert view is not None
    assert [name for name in view.weights if view.reads_input(name)] == [
        "weight_ih_l0",
        "weight_ih_l0_reverse",
    ]
    cell = layer_view(nn.GRUCell(4, 5))
    assert cell is not None
    assert [cell.reads_input(name) for name in cell.weights] == [True, False]


# -- sizes -----------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_tensors():
    for module in (
        nn.Linear(3, 2), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(4, 6, 3, groups=2), nn.LSTM(4, 5),
        nn.LSTM(4, 5, proj_size=3), nn.GRUCell(4, 5), nn.BatchNorm2d(4), nn.BatchNorm1d(4, affine=False),
        nn.InstanceNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm((4, 3)), nn.RMSNorm(4),
        nn.LayerNorm(4, elementwise_affine=False), nn.Embedding(4, 3), nn.PReLU(4), nn.Bilinear(2, 3, 4),
    ):  # fmt: skip
        before = {name: value for name, value in vars(module).items() if isinstance(value, (int, tuple))}
        set_sizes(module)
        assert {name: vars(module)[name] for name in before} == before, module


def test_an_lstm_with_projections_keeps_its_hidden_size_when_others_are_cut():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 7), nn.Linear(7, 4)
            self.lstm = nn.LSTM(4, 5, proj_size=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(self.second(self.first(x).relu()))[0]

    net, x = Net(), torch.randn(2, 6, 3)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x), include="first")
    small, proof = sc.compact(net, x)
    assert proof.parameters[1] < proof.parameters[0]
    assert (small.lstm.hidden_size, small.lstm.proj_size, small.lstm.input_size) == (5, 2, 4)
    assert torch.allclose(small(x), net(x), atol=1e-6)


def test_both_sizes_of_transformers_conv1d_follow():
    from transformers.pytorch_utils import Conv1D as kind

    net, x = nn.Sequential(kind(6, 4), nn.Tanh(), kind(2, 6)), torch.randn(9, 4)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    small, _ = sc.compact(net, x)
    assert [(layer.nx, layer.nf) for layer in (small[0], small[2])] == [(4, 3), (3, 2)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sizes_of_a_layer_whose_weight_a_hook_computes():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.utils.weight_norm(nn.Linear(6, 2)))
    x = torch.randn(4, 3)
    net(x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    small, _ = sc.compact(net, x)
    assert (small[2].in_features, small[2].out_features) == (3, 2)


# -- a layer of a user's own -------------------------------------------------------------------------------


class Dense(nn.Module):
    """Inputs by outputs, names of its own, and a forward of its own."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.fan_in, self.units = inputs, units
        self.kernel = nn.Parameter(torch.randn(inputs, units) / inputs**0.5)
        self.shift = nn.Parameter(torch.randn(units) / 10)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.fan_in
        return (x.reshape(-1, self.fan_in) @ self.kernel + self.shift).reshape(*x.shape[:-1], self.units)


class Half(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


TURNED = {"output_dim": 1, "input_dim": 0, "sizes": {"fan_in": 0, "units": 1}}


@pytest.fixture
def dense():
    sc.register_layer(Dense, weight="kernel", bias="shift", **TURNED)
    yield Dense
    sc.forget_layer(Dense)


def network(kind: type[Dense] = Dense) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(Dense(6, 8), nn.Tanh(), kind(8, 7), nn.Tanh(), kind(7, 3))
    with torch.no_grad():  # a unit that another one can stand for
        net[0].kernel[:, 5], net[0].shift[5] = net[0].kernel[:, 2], net[0].shift[2]
        net[0].kernel[:, 5] *= 0.999
    return net


def test_it_is_no_layer_until_it_is_registered(dense):
    net = network()
    assert list(sc.find_targets(net)) == ["0.kernel", "2.kernel", "4.kernel"]
    assert {target.input_dim for target in sc.find_targets(net).values()} == {0}
    sc.forget_layer(Dense)
    with pytest.raises(TargetError, match="no tensor to prune"):
        sc.find_targets(net)


def test_wanda_reads_what_it_multiplies(dense):
    net, x = network(), torch.randn(50, 6)
    expected = net[0].kernel.detach().abs() * x.square().mean(0).sqrt()[:, None]
    cut = expected.flatten().kthvalue(24).values
    masks = sc.prune(net, sc.Wanda(), sc.Uniform(0.5), data=[x])
    assert torch.equal(masks["0.kernel"], expected > cut)
    pattern = sc.prune(network(), sc.Wanda(), sc.NM(1, 2), data=[x], include="0")
    assert (pattern["0.kernel"].reshape(3, 2, 8).sum(1) == 1).all()


def test_units_of_it_go_and_the_rest_is_refitted_saved_and_loaded(dense, tmp_path):
    net, x = network(), torch.randn(64, 6)
    before, structure = copy.deepcopy(net), sc.trace(net, x)
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.25), structure=structure)
    off = (net(x) - before(x)).square().mean()
    refit = sc.reconstruct(net, before, structure, [x], masks=masks)
    assert list(refit.layers) == ["2", "4"]
    assert not refit.skipped
    assert (net(x) - before(x)).square().mean() < off / 2
    masks.check()
    small, proof = sc.compact(net, x)
    assert [(layer.fan_in, layer.units) for layer in small[::2]] == [(6, 6), (6, 5), (5, 3)]
    assert proof.changed == ()  # its sizes are known, not searched for
    assert torch.allclose(small(x), net(x), atol=1e-5)
    sc.save(small, tmp_path / "small.safetensors")
    loaded = sc.load(network(), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x))
    assert loaded[2].units == 5


@pytest.mark.parametrize("criterion", [sc.Wanda(), sc.Magnitude(), sc.ActivationNorm()])
def test_criteria_on_its_units(dense, criterion):
    net, x = network(), torch.randn(64, 6)
    masks = sc.prune(net, criterion, sc.Uniform(0.25), structure=sc.trace(net, x), data=[x])
    assert [kept for kept, _ in masks.units.values()] == [6, 5]


def test_one_that_computes_something_else_is_not_refitted(dense):
    sc.register_layer(Half, weight="kernel", bias="shift", **TURNED)
    try:
        net, x = network(Half), torch.randn(64, 6)
        before, structure = copy.deepcopy(net), sc.trace(net, x)
        sc.prune(net, sc.L2Norm(), sc.Uniform(0.25), structure=structure)
        values = copy.deepcopy(net.state_dict())
        refit = sc.reconstruct(net, before, structure, [x])
        assert refit.skipped == dict.fromkeys(
            "24", "its output is not the product of its input and its weight"
        )
        assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    finally:
        sc.forget_layer(Half)


class ChannelsFirst(nn.Module):
    """A product over dim 1 of (batch, channels, positions)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,bit->bot", self.weight, x)


def test_channels_that_are_not_last():
    sc.register_layer(ChannelsFirst, bias=None, channels=-2)
    try:
        net, x = nn.Sequential(ChannelsFirst(3, 6), nn.Tanh(), ChannelsFirst(6, 2)), torch.randn(9, 3, 5)
        expected = net[0].weight.detach().abs() * x.square().mean((0, 2)).sqrt()
        masks = sc.prune(net, sc.Wanda(), sc.Uniform(0.5), data=[x], include="0")
        assert torch.equal(masks["0.weight"], expected > expected.flatten().kthvalue(9).values)
        net, dense = copy.deepcopy(net), copy.deepcopy(net)
        structure = sc.trace(net, x)
        sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
        before = (net(x) - dense(x)).square().mean()
        assert list(sc.reconstruct(net, dense, structure, [x]).layers) == ["2"]
        assert (net(x) - dense(x)).square().mean() < before
    finally:
        sc.forget_layer(ChannelsFirst)


def test_sparsify_says_why_it_is_left_dense(dense):
    net, x = network().eval(), torch.randn(2, 6)
    sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    _, sparsified = sc.sparsify(net, x, seconds=0.01)
    assert sparsified.skipped["0"] == "Dense, which has no sparse kernel in this form"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cls": Dense(2, 2)}, r"register_layer: Dense\(\) is no class of layers"),
        ({"cls": dict}, r"register_layer: <class 'dict'> is no class of layers"),
        ({"cls": Dense, "output_dim": 1}, r"register_layer\(Dense\): output_dim and input_dim are both 1"),
        ({"cls": Dense, "output_dim": -1}, r"register_layer\(Dense\): output_dim is -1; it is a dim of the"),
        (
            {"cls": Dense, "sizes": {"units": "1"}},
            r"register_layer\(Dense\): units is '1'; it is a dim of the",
        ),
        ({"cls": Dense, "channels": 1}, r"register_layer\(Dense\): channels is 1; it is a dim counted from"),
    ],
)
def test_what_cannot_be_registered(given, message):
    with pytest.raises(ModelError, match=message):
        sc.register_layer(**given)
    assert layer_view(Dense(2, 2)) is None


def test_a_name_that_the_layer_has_not():
    try:
        sc.register_layer(Dense, weight="kernal")
        with pytest.raises(ModelError, match=r"Dense is registered with weight='kernal'.*mean 'kernel'\?"):
            sc.find_targets(network())
        sc.register_layer(Dense, weight="kernel", sizes={"unit": 1})
        with pytest.raises(ModelError, match=r"registered with a size 'unit'.*did you mean 'units'\?"):
            sc.find_targets(network())
        sc.register_layer(Dense, weight="kernel", bias="shfit")
        with pytest.raises(ModelError, match=r"Dense is registered with bias='shfit'.*mean 'shift'\?"):
            sc.find_targets(network())
        sc.register_layer(Dense, weight="kernel", output_dim=3)
        with pytest.raises(ModelError, match=r"Dense is registered with output_dim 3, and kernel .* 2 dims"):
            sc.find_targets(network())
    finally:
        sc.forget_layer(Dense)


def test_examples_of_the_docstrings():
    found = doctest.testmod(layers)
    assert found.attempted >= 7
    assert not found.failed
