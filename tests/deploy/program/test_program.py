"""From a network to its program: what becomes of each operator, what is folded, what is refused."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from programs import check, off, ops
from torch import nn
from torch.nn import functional as F

from networks.drawn import numbers, stirred
from networks.packaged import NETWORKS, network
from networks.parts import After
from secateur.deploy.program.export import program_of
from secateur.errors import ModelError, NonFiniteError
from secateur.runtime import runner
from secateur.runtime.operators import weights_of

# -- whole networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruned", [0.0, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, pruned):
    model, shape = network(name, pruned)
    program = program_of(model, numbers(2, *shape))
    assert json.loads(json.dumps(program.graph, allow_nan=False)) == program.graph
    assert {"scale", "batch_norm"}.isdisjoint(ops(program))
    assert {w for node in program.graph["nodes"] for w in weights_of(node).values()} == set(program.tensors)
    for batch in (1, 5):
        assert off(model, program, numbers(batch, *shape, seed=batch)) < 1e-5


def test_the_format_of_a_small_network():
    model = network("lenet-5")[0]
    program = program_of(model, numbers(1, 1, 28, 28))
    assert program.graph["version"] == 1
    assert program.graph["inputs"] == [{"name": "x", "shape": [None, 1, 28, 28], "dtype": "float32"}]
    assert program.graph["outputs"] == ["linear_1"]
    assert program.graph["nodes"][0] == {
        "op": "conv",
        "inputs": ["x"],
        "output": "conv2d",
        "shape": [20, 24, 24],
        "weight": "conv1.weight",
        "bias": "conv1.bias",
        "kernel": [5, 5],
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
    }
    assert ops(program) == ["conv", "max_pool", "conv", "max_pool", "reshape", "linear", "linear"]
    assert program.graph["nodes"][5]["activation"] == "relu"
    assert program.tensors["fc1.weight"].data_ptr() == model.fc1.weight.data_ptr()


def test_the_model_is_left_as_it_was():
    model, shape = network("convnet-25 with norms")
    model.train()
    before = copy.deepcopy(model.state_dict())
    program_of(model, numbers(2, *shape))
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_shapes_have_no_batch():
    program = program_of(network("resnet-20")[0], numbers(7, 3, 32, 32))
    model = network("resnet-20")[0]
    assert program.graph == program_of(model, numbers(1, 3, 32, 32)).graph


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_networks_with_scipy(name):
    model, shape = network(name, 0.95)
    program = program_of(model, numbers(2, *shape))
    sparse = runner.sparse_weights(program.graph, program.arrays())
    assert sum(not isinstance(weight, np.ndarray) for weight in sparse.values()) >= 3
    run = runner.interpreter(program.graph, sparse)
    for batch in (1, 5):
        x = numbers(batch, *shape)
        with torch.no_grad():
            wanted = model(x).numpy()
        assert np.abs(run([x.numpy()])[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


# -- folding and fusing --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet-25 with norms", "vgg-16-bn", "resnet-20 with convs"])
def test_pruned_weights_stay_zero_and_the_others_stay_alive(name):
    model, shape = network(name, 0.8)
    program = program_of(model, numbers(2, *shape))
    for key, weight in model.state_dict().items():
        if key in program.tensors and weight.dim() > 1:
            assert torch.equal(program.tensors[key] != 0, weight != 0), key
            bits = program.tensors[key][weight == 0].view(torch.int32)
            assert not bits.any(), f"{key} has zeros with a sign"


def test_a_norm_after_a_linear_layer_is_folded():
    program = check(lambda m, x: m.n(m.f(x)).relu(), 6, f=nn.Linear(6, 5, bias=False), n=nn.BatchNorm1d(5))
    assert ops(program) == ["linear"]
    assert program.graph["nodes"][0]["bias"] == "f.bias"
    assert program.graph["nodes"][0]["activation"] == "relu"


def test_a_norm_that_cannot_be_folded_is_a_scale():
    def read_twice(m, x):
        y = m.c(x)
        return m.n(y) + y

    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    assert ops(check(read_twice, 3, 6, 5, c=conv, n=norm)) == ["conv", "scale", "add"]
    assert ops(check(lambda m, x: m.c(m.n(x)), 3, 6, 5, c=conv, n=nn.BatchNorm2d(3))) == ["scale", "conv"]
    assert ops(check(lambda m, x: m.n(m.c(x).relu()), 3, 6, 5, c=conv, n=norm)) == ["conv", "scale"]
    rows = check(lambda m, x: m.n(m.f(x)), 4, 6, f=nn.Linear(6, 5), n=nn.BatchNorm1d(4))
    assert ops(rows) == ["linear", "scale"]  # the norm is along the rows, not along the layer's outputs
    model = stirred(After(lambda m, x: (m.c(x), m.n(m.c(x))), c=conv, n=norm))
    assert ops(program_of(model, numbers(2, 3, 6, 5))) == ["conv", "conv"]


def test_a_layer_used_twice_keeps_its_weights():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    norms = {"n": nn.BatchNorm2d(3), "o": nn.BatchNorm2d(3, affine=False)}
    program = check(lambda m, x: m.o(m.c(m.n(m.c(x)).relu())) + m.c(x), 3, 6, 5, c=conv, **norms)
    assert ops(program) == ["conv", "conv", "conv", "add"]
    assert len(program.tensors) == 6
    assert torch.equal(program.tensors["c.weight"], conv.weight)


def test_two_norms_in_a_row():
    norms = {"n": nn.BatchNorm2d(4), "o": nn.BatchNorm2d(4)}
    program = check(lambda m, x: m.o(m.n(m.c(x))), 3, 6, 5, c=nn.Conv2d(3, 4, 3), **norms)
    assert ops(program) == ["conv"]


def test_names_that_a_module_has_already():
    class Norm(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0])[:, None, None])

    program = check(lambda m, x: m.n(x) * m.n.scale, 3, 4, 5, n=Norm())
    assert len(program.tensors) == 3


def test_an_activation_that_others_read_too_is_not_fused_away():
    def both(m, x):
        y = m.f(x)
        return y.relu() + y

    assert ops(check(both, 6, f=nn.Linear(6, 5))) == ["linear", "relu", "add"]
    model = stirred(After(lambda m, x: (m.f(x), m.f(x).relu()), f=nn.Linear(6, 5)))
    program = program_of(model, numbers(2, 6))
    assert ops(program) == ["linear", "linear"]
    twice = check(lambda m, x: F.gelu(m.f(x).relu()), 6, f=nn.Linear(6, 5))
    assert ops(twice) == ["linear", "gelu"]


def test_what_nobody_reads_is_dropped():
    def wasteful(m, x):
        m.g(x).relu()
        return m.f(x)

    program = check(wasteful, 6, f=nn.Linear(6, 5), g=nn.Linear(6, 3))
    assert ops(program) == ["linear"]
    assert set(program.tensors) == {"f.weight", "f.bias"}


# -- refusals ------------------------------------------------------------------------------------------


def refusal(function, *shape: int, **layers: nn.Module) -> str:
    with pytest.raises(ModelError) as caught:
        program_of(After(function, **layers), numbers(2, *shape))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_operator_is_named_with_its_module():
    message = refusal(lambda m, x: m.inner(x), 4, 6, inner=nn.Sequential(nn.Linear(6, 6), nn.CELU()))
    assert "aten.celu" in message
    assert "'inner.1'" in message
    assert "supported: abs, add, amax" in message
    message = refusal(lambda m, x: torch.cumprod(x, 1), 4, 6)
    assert "aten.cumprod" in message
    assert "the forward of After" in message


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: x.transpose(0, 1), "moves the batch"),
        (lambda m, x: x.mean(), "along the batch"),
        (lambda m, x: x[0], "along the batch"),
        (lambda m, x: x.softmax(0), "along the batch"),
        (lambda m, x: torch.cat([x, x]), "along the batch"),
        (lambda m, x: x.transpose(0, 1) + 1, "moves the batch"),
        (lambda m, x: x.permute(2, 0, 1).softmax(1), "along the batch"),
        (lambda m, x: x.unsqueeze(0), "moves the batch"),
        (lambda m, x: torch.cat([x, torch.arange(6.0 * len(x)).view(-1, 1, 6)], 1), "joins a constant"),
        (lambda m, x: x + torch.arange(len(x) * 24.0).view(-1, 4, 6), "over the batch"),
        (lambda m, x: F.dropout(x), "even in eval mode"),
        (lambda m, x: F.pad(x, (1, 1), value=math.inf), "other than a finite constant"),
        (lambda m, x: x + torch.rand(6), "draws random numbers"),
        (lambda m, x: F.linear(x, x[0]), "along the batch"),
        (lambda m, x: F.batch_norm(x, None, None, training=True), "normalises by the batch"),
        (lambda m, x: F.celu(x), "celu"),
        (lambda m, x: x * math.inf, "not finite"),
        (lambda m, x: x.argmax(0).float(), "along the batch"),
        (lambda m, x: x[:, [0, 1], [1, 2]], "indexes by several"),
        (lambda m, x: x.long().bitwise_and(3), "the bits of numbers"),
        (lambda m, x: x.double(), "changes the dtype"),
        (lambda m, x: torch.zeros(3) + 1, "does not depend on its input"),
        (lambda m, x: x.expand(3, *x.shape), "repeats its input"),
        (lambda m, x: x**x, "an exponent that is no number"),
        (lambda m, x: torch.linalg.vector_norm(x, 1, dim=-1), "another order than 2"),
        (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "rounds"),
    ],
)
def test_refusals(function, reason):
    assert reason in refusal(function, 4, 6)


def test_a_buffer_that_changes_is_refused():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls.add_(1)
            return x + self.calls

    assert "changes a parameter or buffer" in refusal(lambda m, x: m.c(x), 6, c=Counting())


def test_a_batch_of_one_that_is_squeezed_away_is_refused():
    message = refusal(lambda m, x: x.mean((2, 3), keepdim=True).squeeze(), 4, 6, 5)
    assert "batch of 1" in message


def test_a_write_into_a_view_is_refused():
    def forward(m, x):
        y = x * 2
        y[:, 0].relu_()
        return y

    assert "writes into a view" in refusal(forward, 4, 6)


def test_bad_inputs():
    model = nn.Linear(6, 5)
    with pytest.raises(ModelError, match="one batch size"):
        program_of(After(lambda m, x, y: m.f(x) + y, f=model), (numbers(2, 6), numbers(1, 5)))
    with pytest.raises(ModelError, match="one batch size"):
        program_of(model, torch.tensor(1.0))
    with pytest.raises(ModelError, match="no tensor"):
        program_of(model, ())
    with pytest.raises(ModelError, match="float64"):
        program_of(nn.Linear(6, 5).double(), numbers(2, 6).double())
    with pytest.raises(ModelError, match="does not run"):
        program_of(model, numbers(2, 7))
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        program_of(model, numbers(2, 6))


def test_a_batch_size_written_into_the_forward_is_refused():
    message = refusal(lambda m, x: m.f(x.reshape(2, -1)), 4, 6, f=nn.Linear(24, 3))
    assert "captured" in message
