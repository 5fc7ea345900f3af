"""sparsify: the same outputs, each layer by the engine that was fastest, and dense where that is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import secateur as sc
from secateur.deploy import sparse as sparse_module
from secateur.deploy.sparse import fold_batch_norms, sparsify
from secateur.deploy.sparse_layers import SparseLayer, supported
from secateur.errors import ModelError, NonFiniteError
from secateur.graph.capture import capture
from secateur.measure.latency import Timing
from secateur.models import build_model


def pruned(name: str, sparsity: float, **options) -> nn.Module:
    model = build_model(name, **options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    sc.prune(model, sc.Magnitude(), sc.Uniform(sparsity))
    return model


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.fixture
def sparse_wins(monkeypatch):
    """Timings by the name of what is timed: the first sparse engine is always the fastest."""

    def timing(models, *args, **kwargs):
        seconds = {name: float(i) for i, name in enumerate(["compiled", "scipy", "torch csr", "sparse"], 1)}
        return {name: Timing(seconds.get(name, 9.0), 0.0, 0.0, 5, 1) for name in models}

    monkeypatch.setattr(sparse_module, "time_inference", timing)


@pytest.mark.parametrize("engine", ["compiled", "scipy", "torch csr"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7)])
def test_a_linear_layer_in_every_engine(engine, bias, shape):
    layer = nn.Linear(7, 6, bias=bias)
    with torch.no_grad():
        layer.weight[torch.rand(6, 7) < 0.8] = 0
    x = torch.randn(shape)
    with torch.inference_mode():
        assert torch.allclose(layer(x), SparseLayer(layer, engine)(x), atol=1e-6)


def test_a_convolution_at_several_sizes():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.8] = 0
        made = SparseLayer(layer, "compiled")
        for shape in ((1, 4, 9, 9), (3, 4, 12, 8)):
            x = torch.randn(shape).to(memory_format=torch.channels_last)
            assert torch.allclose(layer(x), made(x), atol=1e-6)
        with pytest.raises(ModelError, match="4 channels got"):
            made(torch.randn(1, 3, 9, 9))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("fashion-mlp", {}, (3, 784)),
        ("vgg-16-bn", {"width": 0.25}, (2, 3, 32, 32)),
        ("resnet-20", {"shortcut": "conv"}, (2, 3, 32, 32)),
    ],
)
def test_networks_compute_the_same(sparse_wins, name, options, shape):
    model, x = pruned(name, 0.9, **options), torch.randn(shape)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    made, table = sparsify(model, x)
    with torch.inference_mode():
        assert off(model(x), made(x)) < 1e-5
    assert {layer.engine for layer in table.layers} == {"compiled"}
    assert sum(isinstance(m, SparseLayer) for m in made.modules()) == len(table.layers) > 4
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert "max error" in repr(table)


def test_a_layer_without_zeros_stays_and_is_not_in_the_table(sparse_wins):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.no_grad():
        model[2].weight[:4] = 0
    made, table = sparsify(model, torch.randn(2, 8))
    assert isinstance(made[0], nn.Linear)
    assert [layer.name for layer in table.layers] == ["2"]
    assert table.layers[0].sparsity == 0.5


def test_dense_is_kept_where_it_is_faster(monkeypatch):
    def timing(models, *args, **kwargs):
        return {n: Timing(1.0 if n in ("dense", "folded") else 0.97, 0.0, 0.0, 5, 1) for n in models}

    monkeypatch.setattr(sparse_module, "time_inference", timing)
    made, table = sparsify(pruned("lenet-300-100", 0.5), torch.randn(2, 1, 28, 28))
    assert not any(isinstance(m, SparseLayer) for m in made.modules())
    assert {layer.engine for layer in table.layers} == {"dense"}


def test_norms_fold_only_where_nobody_else_reads_the_layer():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.b, self.nb = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.na(self.a(x))
            y = self.b(x)
            return self.nb(y) + y

    model, x = Net().eval(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        model.na.running_mean.normal_()
        model.na.running_var.uniform_(0.5, 2)
        wanted = model(x)
        assert fold_batch_norms(model, capture(model, x)) == ["na"]
        assert off(wanted, model(x)) < 1e-6


def test_a_norm_along_the_rows_of_a_linear_layer_is_not_folded_into_it():
    for rows in (4, 5):
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(rows)).eval()
        assert fold_batch_norms(model, capture(model, torch.randn(2, rows, 6))) == []


def test_what_cannot_be_sparse_is_said(sparse_wins):
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 4)
    )
    with torch.no_grad():
        model[0].weight[0] = 0
        model[2].weight[0] = 0
    _, table = sparsify(model, torch.randn(1, 2, 4, 4))
    assert "no sparse kernel" in table.skipped["0"]
    assert supported(nn.Conv2d(2, 2, 3, padding_mode="reflect")) == ()


def test_bad_input_is_one_clear_error():
    model, x = pruned("lenet-300-100", 0.5), torch.randn(2, 1, 28, 28)
    with pytest.raises(ModelError, match="no engine 'bsr'"):
        sparsify(model, x, engines=["bsr"])
    with pytest.raises(ModelError, match="float64"):
        sparsify(build_model("lenet-300-100").double(), x.double())
    broken = build_model("lenet-300-100")
    with torch.no_grad():
        next(broken.parameters())[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or an infinity"):
        sparsify(broken, x)
    layer = SparseLayer(model.fc1 if hasattr(model, "fc1") else nn.Linear(784, 3), "scipy")
    with pytest.raises(ModelError, match="no gradients"):
        layer(torch.randn(2, 784, requires_grad=True))
    with pytest.raises(ModelError, match="float32 on the CPU"):
        layer(torch.randn(2, 784).double())


class Scale(nn.Module):
    """A layer of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.gain = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix * self.gain


class Every(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(5, 8))
        self.words, self.recurrent = nn.Embedding(7, 8), nn.LSTM(8, 8, batch_first=True)
        self.cell, self.attention = nn.GRUCell(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.own, self.both = nn.ConvTranspose1d(5, 5, 1), Scale(), nn.Bilinear(8, 8, 8)
        self.turned = Conv1D(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.norm, self.full, self.pruned = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.read = nn.Linear(8, 8)  # its weight is read, and it is not called

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.recurrent(self.words(ids) + self.position)[0]
        x = self.up(self.attention(x, x, x)[0])
        x = self.cell(self.own(x).flatten(0, 1)).view_as(x)
        x = self.normed(self.turned(self.both(x, x)))
        return nn.functional.linear(self.pruned(self.full(self.norm(x))), self.read.weight)


def test_every_layer_with_weights_that_stays_dense_is_named_with_its_kind_and_why(sparse_wins):
    torch.manual_seed(0)
    model = Every()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("full") and not name.endswith("original0"):
                parameter.view(-1)[::2] = 0
    ids = torch.randint(7, (2, 5))
    _, table = sparsify(model, ids, engines=["compiled"])
    assert [layer.name for layer in table.layers] == ["pruned"]
    form = "which has no sparse kernel in this form"
    assert dict(table.skipped) == {
        "Every": f"Every, {form}",  # the positions
        "words": f"Embedding, {form}",
        "recurrent": f"LSTM, {form}",
        "cell": f"GRUCell, {form}",
        "attention": f"MultiheadAttention, {form}",
        "attention.out_proj": f"NonDynamicallyQuantizableLinear, {form}",
        "up": f"ConvTranspose1d, {form}",
        "own": f"Scale, {form}",
        "both": f"Bilinear, {form}",
        "turned": f"Conv1D, {form}",
        "normed": f"ParametrizedLinear, {form}",
        "full": "Linear, none of its weights is zero",
        "read": "Linear, not called on one tensor alone",
    }
    assert all(f"{name}: {why}" in repr(table) for name, why in table.skipped.items())


def test_weights_without_zeros_are_named_whatever_their_kind(sparse_wins):
    _, table = sparsify(nn.GRU(4, 4), torch.randn(3, 2, 4))
    assert dict(table.skipped) == {"GRU": "GRU, none of its weights is zero"}


def test_a_layer_alone_becomes_a_sparse_one(sparse_wins):
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    with torch.no_grad():
        layer.weight[:, :12] = 0
    made, table = sparsify(layer, x)
    assert isinstance(made, SparseLayer)
    assert table.layers[0].engine == "compiled"
    assert off(layer(x).detach(), made(x)) < 1e-5
