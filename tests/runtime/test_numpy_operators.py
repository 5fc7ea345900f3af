"""Every operator of a program against PyTorch's, over drawn settings."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.nn import functional as F

from secateur.runtime import operators
from secateur.runtime.activations import erf
from secateur.runtime.operators import OPERATORS

few = settings(max_examples=60, deadline=None)
fewer = settings(max_examples=25, deadline=None)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(node: dict, inputs: list, wanted: torch.Tensor, tensors: dict | None = None, within: float = 1e-5):
    """The operator gives what PyTorch gives, and leaves its inputs alone."""
    arrays = [x.numpy() for x in inputs]
    before = [array.copy() for array in arrays]
    weights = {name: t.numpy() if isinstance(t, torch.Tensor) else t for name, t in (tensors or {}).items()}
    node = {"inputs": ["x"] * len(inputs), "output": "y", "shape": list(wanted.shape[1:]), **node}
    found = OPERATORS[node["op"]](node, arrays, weights)
    assert found.dtype == np.float32
    assert found.shape == tuple(wanted.shape)
    if wanted.numel():
        assert np.abs(found - wanted.numpy()).max() <= within * max(float(wanted.abs().max()), 1e-20)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@st.composite
def convolutions(draw, spatial: int):
    """Settings of a convolution that has at least one output, and an input for it."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    if draw(st.booleans()):
        groups = inputs = draw(st.integers(1, 4))  # depthwise
        outputs = inputs * draw(st.integers(1, 2))
    each = lambda low, high: draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))  # noqa: E731
    kernel, stride, dilation, padding = each(1, 4), each(1, 3), each(1, 3), each(0, 3)
    sizes = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), d * (k - 1) + 8))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    node = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    return node, draw(st.integers(1, 4)), inputs, outputs, sizes


def check_convolution(case, bias: bool = True, **extra):
    node, batch, inputs, outputs, sizes = case
    x = drawn(batch, inputs, *sizes)
    weight = drawn(outputs, inputs // node["groups"], *node["kernel"], seed=1)
    tensors = {"w": weight, "b": drawn(outputs, seed=2)}
    function = F.conv1d if len(sizes) == 1 else F.conv2d
    places = (node["stride"], node["padding"], node["dilation"], node["groups"])
    wanted = function(x, weight, tensors["b"] if bias else None, *places)
    entry = {"op": "conv", "weight": "w", "bias": "b" if bias else None, **node, **extra}
    if extra.get("activation") == "relu":
        wanted = wanted.relu()
    same(entry, [x], wanted, tensors)
    return entry, x, wanted, tensors


@few
@given(convolutions(2))
def test_conv2d(case):
    check_convolution(case)


@few
@given(convolutions(1), st.booleans())
def test_conv1d(case, bias):
    check_convolution(case, bias=bias, activation="relu")


@fewer
@given(convolutions(2), st.integers(1, 400))
def test_a_convolution_in_blocks_of_any_size(case, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_BLOCK", block)
        check_convolution(case)


@fewer
@given(convolutions(2))
def test_a_convolution_with_a_sparse_weight(case):
    node = {**case[0], "groups": 1}
    entry, x, wanted, tensors = check_convolution((node, *case[1:]))
    matrix = sparse.csr_array(tensors["w"].numpy().reshape(case[3], -1))
    same(entry, [x], wanted, {**tensors, "w": matrix})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 3, 7), (2, 3, 4, 7)])
def test_linear(shape, bias):
    x, weight, b = drawn(*shape), drawn(4, 7, seed=1), drawn(4, seed=2)
    wanted = F.linear(x, weight, b if bias else None)
    node = {"op": "linear", "weight": "w", "bias": "b" if bias else None}
    same(node, [x], wanted, {"w": weight, "b": b})
    same(node, [x], wanted, {"w": sparse.csr_array(weight.numpy()), "b": b})
    same(
        {**node, "activation": "leaky_relu", "slope": 0.1},
        [x],
        F.leaky_relu(wanted, 0.1),
        {"w": weight, "b": b},
    )


def test_embedding():
    weight, rows = drawn(9, 4), torch.tensor([[1, 8, 0], [2, 2, 3]])
    same({"op": "embedding", "weight": "w"}, [rows], F.embedding(rows, weight), {"w": weight})


# -- pooling -------------------------------------------------------------------------------------------


@st.composite
def pools(draw, spatial: int):
    each = lambda low, high: draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))  # noqa: E731
    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 2)
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    sizes = [
        draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 8)) for k, d in zip(kernel, dilation, strict=True)
    ]
    return {"kernel": kernel, "stride": stride, "padding": padding}, dilation, sizes, draw(st.booleans())


@few
@given(pools(2))
def test_max_pool2d(case):
    node, dilation, sizes, ceil = case
    x = drawn(3, 2, *sizes)
    wanted = F.max_pool2d(x, node["kernel"], node["stride"], node["padding"], dilation, ceil)
    same({"op": "max_pool", **node, "dilation": dilation}, [x], wanted)


@fewer
@given(pools(1))
def test_max_pool1d(case):
    node, dilation, sizes, ceil = case
    x = drawn(3, 2, *sizes)
    wanted = F.max_pool1d(x, node["kernel"], node["stride"], node["padding"], dilation, ceil)
    same({"op": "max_pool", **node, "dilation": dilation}, [x], wanted)


@few
@given(pools(2), st.booleans(), st.sampled_from([None, 1, 5]))
def test_avg_pool2d(case, count, divisor):
    node, _, sizes, ceil = case
    x = drawn(3, 2, *sizes)
    wanted = F.avg_pool2d(x, node["kernel"], node["stride"], node["padding"], ceil, count, divisor)
    same({"op": "avg_pool", **node, "count_padding": count, "divisor": divisor}, [x], wanted)


@fewer
@given(pools(1), st.booleans())
def test_avg_pool1d(case, count):
    node, _, sizes, ceil = case
    x = drawn(3, 2, *sizes)
    wanted = F.avg_pool1d(x, node["kernel"], node["stride"], node["padding"], ceil, count)
    same({"op": "avg_pool", **node, "count_padding": count, "divisor": None}, [x], wanted)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [[1], [2, 3], [1, 3]])
def test_reductions(dims, keepdim):
    x = drawn(3, 4, 5, 6)
    for op in ("mean", "sum", "amax"):
        same({"op": op, "dims": dims, "keepdim": keepdim}, [x], getattr(x, op)(dims, keepdim))


# -- elementwise ---------------------------------------------------------------------------------------

ACTIVATIONS = [
    ("relu", {}, F.relu),
    ("clamp", {"low": 0.0, "high": 6.0}, F.relu6),
    ("clamp", {"low": -0.5, "high": None}, lambda x: x.clamp(min=-0.5)),
    ("clamp", {"low": None, "high": 0.25}, lambda x: x.clamp(max=0.25)),
    ("leaky_relu", {"slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    ("leaky_relu", {"slope": -1.5}, lambda x: F.leaky_relu(x, -1.5)),
    ("elu", {"alpha": 1.5}, lambda x: F.elu(x, 1.5)),
    ("gelu", {}, F.gelu),
    ("gelu_tanh", {}, lambda x: F.gelu(x, approximate="tanh")),
    ("silu", {}, F.silu),
    ("sigmoid", {}, torch.sigmoid),
    ("tanh", {}, torch.tanh),
    ("hardswish", {}, F.hardswish),
    ("hardsigmoid", {}, F.hardsigmoid),
    ("softplus", {"beta": 1.0, "threshold": 20.0}, F.softplus),
    ("softplus", {"beta": 2.0, "threshold": 1.0}, lambda x: F.softplus(x, 2.0, 1.0)),
]


@pytest.mark.parametrize(("op", "node", "function"), ACTIVATIONS)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_activations(op, node, function, size):
    x = size * drawn(3, 5, 7)
    same({"op": op, **node}, [x], function(x))
    flat = x.reshape(3, 35)
    weights = {"w": torch.eye(35)}
    fused = {"op": "linear", "weight": "w", "bias": None, "activation": op, **node}
    same(fused, [flat], function(flat), weights)


@pytest.mark.parametrize(("op", "node", "function"), ACTIVATIONS)
def test_activations_of_huge_numbers(op, node, function):
    x = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e12]])
    found = OPERATORS[op]({"op": op, **node}, [x.numpy()], {})
    assert np.allclose(found, function(x).numpy(), rtol=1e-5, atol=1e-30)


def test_every_activation_is_tested():
    assert {op for op, *_ in ACTIVATIONS} == set(operators.ACTIVATIONS)


def test_an_activation_is_one_row():
    for name, row in operators.ACTIVATIONS.items():
        assert row.kernel is None or row.bounds is None, f"{name}: a layer clamps, so it needs no kernel"
        assert row.kernel is None or len(row.settings) <= 2, f"{name}: a kernel is given two settings"
        assert OPERATORS[name] is operators._elementwise


def test_the_documents_list_every_activation():
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Activations: "))
    assert re.findall(r"`(\w+)`", line) == list(operators.ACTIVATIONS)


def test_the_error_function():
    x = np.concatenate([np.linspace(-6, 6, 200_001), [-1e30, 1e30, 0.0, 1e-20]]).astype(np.float32)
    wanted = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(erf(x) - wanted).max() < 1e-7
    assert erf(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert np.isnan(erf(np.array([np.nan], np.float32))).all()
    turned = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32).T
    assert np.array_equal(erf(turned), erf(turned.copy()))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_arithmetic(op):
    function = getattr(torch, op)
    x, y = drawn(3, 4, 5), drawn(3, 4, 1, seed=1)
    same({"op": op}, [x, y], function(x, y))
    same({"op": op, "scalar": 1.7, "reversed": False}, [x], function(x, 1.7))
    same({"op": op, "scalar": 1.7, "reversed": True}, [x], function(torch.tensor(1.7), x))
    row = drawn(4, 5, seed=2)
    same({"op": op, "tensor": "t", "reversed": False}, [x], function(x, row), {"t": row})
    same({"op": op, "tensor": "t", "reversed": True}, [x], function(row, x), {"t": row})


# -- norms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_norms(affine):
    x = 3 + 2 * drawn(3, 6, 4, 5)
    weight, bias = drawn(4, 5, seed=1), drawn(4, 5, seed=2)
    both = {"weight": "w", "bias": "b"} if affine else {"weight": None, "bias": None}
    wanted = F.layer_norm(x, (4, 5), *((weight, bias) if affine else (None, None)), 1e-3)
    same({"op": "layer_norm", "dims": 2, "eps": 1e-3, **both}, [x], wanted, {"w": weight, "b": bias})
    weight, bias = drawn(6, seed=1), drawn(6, seed=2)
    for groups in (1, 2, 3, 6):
        wanted = F.group_norm(x, groups, *((weight, bias) if affine else (None, None)), 1e-3)
        same(
            {"op": "group_norm", "groups": groups, "eps": 1e-3, **both}, [x], wanted, {"w": weight, "b": bias}
        )


def test_scale():
    scale, shift = drawn(4), drawn(4, seed=1)
    for shape in ((2, 4), (2, 4, 3), (2, 4, 3, 5)):
        x = drawn(*shape, seed=2)
        column = (-1, *(1 for _ in shape[2:]))
        wanted = x * scale.view(column) + shift.view(column)
        same({"op": "scale", "scale": "s", "shift": "t"}, [x], wanted, {"s": scale, "t": shift})


@pytest.mark.parametrize("dim", [1, 2])
def test_softmax(dim):
    for size in (1.0, 1000.0):
        x = size * drawn(3, 4, 5)
        same({"op": "softmax", "dim": dim}, [x], F.softmax(x, dim))
        same({"op": "log_softmax", "dim": dim}, [x], F.log_softmax(x, dim))


# -- moving data ---------------------------------------------------------------------------------------


def test_movement():
    x, y = drawn(3, 4, 6, 2), drawn(3, 5, 6, 2, seed=1)
    same({"op": "cat", "dim": 1}, [x, y], torch.cat([x, y], 1))
    same({"op": "reshape"}, [x], x.reshape(3, 8, 6))
    same({"op": "reshape"}, [x.permute(0, 3, 1, 2)], x.permute(0, 3, 1, 2).reshape(3, 48))
    for exponent in (2.0, 0.5, -0.5, 1.7):
        same({"op": "power", "exponent": exponent}, [x.abs() + 0.1], (x.abs() + 0.1) ** exponent)
    same({"op": "expand"}, [x[:, :1]], x[:, :1].expand(3, 4, 6, 2))
    same({"op": "reshape", "rows": [4, 1]}, [x], x.reshape(12, 6, 2))
    same({"op": "reshape", "rows": [1, 3]}, [x], x.reshape(1, 144))
    same({"op": "permute", "dims": [0, 2, 3, 1]}, [x], x.permute(0, 2, 3, 1))
    same({"op": "slice", "dim": 2, "start": 1, "stop": 6, "step": 2}, [x], x[:, :, 1:6:2])
    pad = {"op": "pad", "before": [2, 0, 1], "after": [1, 3, 0], "value": 1.5}
    same(pad, [x], F.pad(x, (1, 0, 0, 3, 2, 1), value=1.5))
    left, right = drawn(3, 2, 4, 5), drawn(3, 2, 5, 6, seed=1)
    same({"op": "matmul"}, [left, right], left @ right)


def test_an_empty_batch():
    x = torch.zeros(0, 2, 5, 5)
    conv = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    weights = {"w": drawn(3, 2, 3, 3)}
    same(
        {"op": "conv", "weight": "w", "bias": None, **conv},
        [x],
        F.conv2d(x, weights["w"], padding=1),
        weights,
    )
    pool = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1]}
    same({"op": "max_pool", **pool}, [x], torch.zeros(0, 2, 2, 2))
    norm = {"op": "group_norm", "groups": 2, "weight": None, "bias": None, "eps": 1e-5}
    same(norm, [x], x)
