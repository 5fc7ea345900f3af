"""The compiled kernels compute what the numpy operators do, whatever lay in the arena before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.deploy.program.export import program_of
from secateur.models import build_model
from secateur.runtime.activations import ACTIVATIONS, Activation
from secateur.runtime.instructions import INSTRUCTIONS
from secateur.runtime.operators import OPERATORS
from secateur.runtime.planning import Compiled, images_at_once
from secateur.runtime.runner import execute
from secateur.runtime.workspace import UnsupportedError

quick = settings(max_examples=40, deadline=None)


def off(wanted: np.ndarray, found: np.ndarray) -> float:
    assert wanted.shape == found.shape
    return float(np.abs(wanted - found).max() / max(np.abs(wanted).max(), 1e-30))


def run(graph: dict[str, Any], tensors: dict[str, np.ndarray], *inputs: np.ndarray) -> list[np.ndarray]:
    """Run compiled, in an arena full of NaN."""
    compiled = Compiled(graph, tensors)
    compiled.arenas = [np.full(3_000_000, np.nan, np.float32)]
    return compiled(inputs)


def one(op: str, shapes: list[tuple[int, ...]], shape: tuple[int, ...], **rest: Any) -> dict[str, Any]:
    names = [f"x{i}" for i in range(len(shapes))]
    given_ = [
        {"name": n, "shape": [None, *s], "dtype": "float32"} for n, s in zip(names, shapes, strict=True)
    ]
    node = {"op": op, "inputs": names, "output": "y", "shape": list(shape), **rest}
    return {"version": 1, "inputs": given_, "outputs": ["y"], "nodes": [node]}


def randn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sparse(seed: int, density: float, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def alike(graph: dict[str, Any], tensors: dict[str, np.ndarray], *inputs: np.ndarray) -> None:
    wanted = execute(graph, tensors, inputs)
    for a, b in zip(wanted, run(graph, tensors, *inputs), strict=True):
        assert off(a, b) < 1e-5


@quick
@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(1, 3),
)
def test_convolutions(data, kernel, stride, padding, dilation, groups, density, batch):
    height, width = data.draw(st.integers(5, 9)), data.draw(st.integers(5, 20))
    kernels = [kernel, data.draw(st.integers(1, 3))]
    weight = sparse(1, density, 4, 4 // groups, *kernels)
    x = randn(0, batch, 4, height, width)
    y = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), None, stride, padding, dilation, groups)
    settings_ = {
        "kernel": kernels,
        "stride": [stride] * 2,
        "padding": [padding] * 2,
        "dilation": [dilation] * 2,
        "groups": groups,
        "weight": "w",
        "bias": data.draw(st.sampled_from(["b", None])),
        "activation": data.draw(st.sampled_from([None, "relu", "sigmoid"])),
    }
    graph = one("conv", [x.shape[1:]], tuple(y.shape[1:]), **settings_)
    alike(graph, {"w": weight, "b": randn(2, 4)}, x)


@quick
@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.9]), st.integers(1, 70))
def test_linear_layers(inputs, outputs, density, batch):
    weight, bias = sparse(1, density, outputs, inputs), randn(2, outputs)
    x = np.maximum(randn(0, batch, inputs), 0)  # zeros are skipped
    graph = one("linear", [(inputs,)], (outputs,), weight="w", bias="b", activation="relu")
    alike(graph, {"w": weight, "b": bias}, x)


@quick
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 70), st.booleans())
def test_features_of_an_image_that_is_given(channels, height, width, batch, twice):
    """Flattened where it lies, by tiles and what is left over; copied first if a mean reads it too."""
    x, inputs = randn(0, batch, channels, height, width), channels * height * width
    flat = {"op": "reshape", "inputs": ["x0"], "output": "flat", "shape": [inputs]}
    linear = {"op": "linear", "inputs": ["flat"], "output": "y", "shape": [3]}
    graph = one("relu", [x.shape[1:]], (3,))
    graph["nodes"] = [flat, {**linear, "weight": "w", "bias": None, "activation": None}]
    if twice:
        mean = {"op": "mean", "inputs": ["x0"], "output": "mean", "dims": [2, 3], "keepdim": False}
        graph["nodes"].append({**mean, "shape": [channels]})
        graph["outputs"].append("mean")
    alike(graph, {"w": sparse(1, 0.3, 3, inputs)}, x)


@quick
@given(st.integers(1, 40), st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from([-0.8, 2.5, 0.0]))
def test_a_background_is_not_read_and_changes_nothing(inputs, density, background):
    x = np.full((1, inputs), background, np.float32)
    x[0, 2::3] = randn(0, len(x[0, 2::3]))
    graph = one("linear", [(inputs,)], (20,), weight="w", bias=None, activation=None)
    alike(graph, {"w": sparse(1, density, 20, inputs)}, x)


def test_rows_further_apart_than_a_byte_holds():
    weight = np.zeros((1600, 4), np.float32)
    for number, (row, column) in enumerate(
        [(255, 0), (256, 0), (1599, 0), (510, 2), (765, 2), (0, 3), (256, 3)]
    ):
        weight[row, column] = number + 1
    graph = one("linear", [(4,)], (1600,), weight="w", bias=None, activation=None)
    x = np.float32([[1, 2, 3, 4]])
    assert np.array_equal(run(graph, {"w": weight}, x)[0], x @ weight.T)


def test_a_background_of_infinities_is_none():
    weight = np.float32([[0, 0, 0, 0, 0, 3], [0, 0, 0, 0, -1, 0]])
    x = np.float32([[np.inf, np.inf, np.inf, np.inf, 1, 2]])
    graph = one("linear", [(6,)], (2,), weight="w", bias=None, activation=None)
    assert run(graph, {"w": weight}, x)[0].tolist() == [[6, -1]]


@quick
@given(st.data(), st.sampled_from(["max_pool", "avg_pool"]), st.integers(1, 3), st.integers(1, 3))
def test_pools(data, op, kernel, stride):
    padding = data.draw(st.integers(0, kernel // 2))
    x = randn(0, data.draw(st.integers(1, 3)), 3, 7, data.draw(st.integers(7, 12)))
    function = F.max_pool2d if op == "max_pool" else F.avg_pool2d
    y = function(torch.from_numpy(x), kernel, stride, padding)
    extra = {"dilation": [1, 1]} if op == "max_pool" else {"divisor": None}
    extra |= {} if op == "max_pool" else {"count_padding": data.draw(st.booleans())}
    rest = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [padding] * 2, **extra}
    alike(one(op, [x.shape[1:]], tuple(y.shape[1:]), **rest), {}, x)


class Everything(nn.Module):
    """Residuals, a strided shortcut, a cat, slices, pads, norms, a scale and many activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.short = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(8, 12, 1, stride=2)
        self.norm = nn.BatchNorm2d(12)
        self.valid = nn.Conv2d(24, 10, 3)
        self.head = nn.Linear(10 * 5 * 3, 7)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.stem(x))
        x = (x + self.deep(x)).relu()
        a, b = self.down(x), self.short(x)
        x = self.norm(F.hardtanh(a - b) * 2.0 + a).clamp(-1.0, 0.9)
        x = torch.cat([x, F.gelu(x[:, :6]), F.pad(x[:, :6, ::2, ::2], (0, 3, 0, 4))], 1)
        x = F.max_pool2d(F.elu(self.valid(x)), 2, stride=1)
        return self.head(x[:, :, :, :3].flatten(1)).log_softmax(1)


@pytest.mark.parametrize("batch", [1, 2, 19])
def test_a_network_of_everything(batch):
    torch.manual_seed(0)
    model = Everything().eval()
    program = program_of(model, torch.randn(2, 3, 15, 13))
    x = torch.randn(batch, 3, 15, 13)
    with torch.no_grad():
        assert off(model(x).numpy(), run(program.graph, program.arrays(), x.numpy())[0]) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("fashion-mlp", {}, (784,)),
        ("lenet-5", {}, (1, 28, 28)),
        ("convnet-25", {"batch_norm": True}, (3, 25, 25)),
        ("vgg-16-bn", {"width": 0.25}, (3, 32, 32)),
        ("resnet-20", {"shortcut": "pad"}, (3, 32, 32)),
        ("resnet-20", {"shortcut": "conv"}, (3, 32, 32)),
    ],
)
def test_the_packages_own_networks(name, options, shape):
    model = build_model(name, **options).eval()
    sc.prune(model, sc.Magnitude(), sc.Uniform(0.9))
    program = program_of(model, torch.randn(2, *shape))
    for batch in (1, 5, 67 if len(shape) == 1 else 6):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            assert off(model(x).numpy(), run(program.graph, program.arrays(), x.numpy())[0]) < 1e-5


def test_features_are_taken_sixty_four_at_a_time_and_images_by_their_size():
    mlp = program_of(build_model("fashion-mlp"), torch.randn(2, 784)).graph
    assert images_at_once(mlp) == 64
    assert (
        images_at_once(program_of(build_model("lenet-5"), torch.randn(2, 1, 28, 28)).graph) == 8192 // 24**2
    )


def test_threads_share_a_batch_out():
    program = program_of(build_model("lenet-300-100"), torch.randn(2, 1, 28, 28))
    x = randn(0, 300, 1, 28, 28)
    one_, two = (Compiled(program.graph, program.arrays(), threads)([x])[0] for threads in (1, 2))
    assert (one_ == two).all()


def test_an_empty_batch_has_empty_outputs():
    program = program_of(build_model("lenet-300-100"), torch.randn(2, 1, 28, 28))
    compiled = Compiled(program.graph, program.arrays())
    assert compiled([np.empty((0, 1, 28, 28), np.float32)])[0].shape == (0, 10)


def test_a_nan_in_one_image_stays_in_it():
    program = program_of(build_model("lenet-5"), torch.randn(2, 1, 28, 28))
    x = randn(0, 3, 1, 28, 28)
    x[1, 0, 3, 3] = np.nan
    (y,) = run(program.graph, program.arrays(), x)
    assert np.isnan(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()


def test_what_the_kernels_lack_is_said():
    graph = one("layer_norm", [(8,)], (8,), dims=1, weight=None, bias=None, eps=1e-5)
    with pytest.raises(UnsupportedError, match="layer_norm"):
        Compiled(graph, {})


def test_every_kernel_computes_what_its_function_does():
    x = np.concatenate([randn(0, 1, 60) * 5, np.float32([[0, -0.0, 100, -100]])], 1)
    for name, row in ACTIVATIONS.items():
        settings_ = dict(zip(row.settings, (0.3, 1.5), strict=False))
        alike(one(name, [(64,)], (64,), **settings_), {}, x)
        alike(one(name, [(64,)], (64,), **settings_), {}, np.repeat(x, 5, 0))


def test_an_activation_without_a_kernel_is_numpys(monkeypatch):
    """One row more: numpy runs it, the compiled engine says what it lacks."""
    row = Activation(lambda x, node, out: np.square(x, out=out))
    monkeypatch.setitem(ACTIVATIONS, "squared", row)
    monkeypatch.setitem(OPERATORS, "squared", OPERATORS["relu"])
    monkeypatch.setitem(INSTRUCTIONS, "squared", INSTRUCTIONS["relu"])
    weight = {"w": np.eye(4, dtype=np.float32)}
    fused = one("linear", [(4,)], (4,), weight="w", bias=None, activation="squared")
    x = randn(0, 2, 4)
    for graph in (one("squared", [(4,)], (4,)), fused):
        assert off(np.square(x), execute(graph, weight, [x])[0]) < 1e-6
        with pytest.raises(UnsupportedError, match="the activation squared"):
            Compiled(graph, weight)


def test_several_rows_an_example_are_left_to_numpy():
    graph = one("reshape", [(6,)], (3,), rows=[2, 1])
    with pytest.raises(UnsupportedError, match="several rows an example"):
        Compiled(graph, {})
