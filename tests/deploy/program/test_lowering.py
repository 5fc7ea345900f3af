"""What each operator of an exported graph becomes in a program."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest
import torch
from programs import check, off, ops
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.drawn import numbers
from networks.parts import After
from secateur.deploy.program import elementwise, moves, recurrent, resampling, rules
from secateur.deploy.program.export import program_of
from secateur.deploy.program.lowering import _RULES
from secateur.errors import ModelError
from secateur.runtime.activations import ACTIVATIONS
from secateur.runtime.runner import execute

TABLES = (elementwise, moves, recurrent, resampling, rules)
MODULES = [
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.ReLU6(), "clamp"),
    (nn.Hardtanh(-0.3, 0.7), "clamp"),
    (nn.LeakyReLU(0.3), "leaky_relu"),
    (nn.ELU(0.7), "elu"),
    (nn.GELU(), "gelu"),
    (nn.GELU("tanh"), "gelu_tanh"),
    (nn.SiLU(inplace=True), "silu"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.Tanh(), "tanh"),
    (nn.Hardswish(), "hardswish"),
    (nn.Hardsigmoid(), "hardsigmoid"),
    (nn.Softplus(2.0, 3.0), "softplus"),
]


@pytest.mark.parametrize(("module", "op"), MODULES)
def test_activations(module, op):
    assert op in ACTIVATIONS
    program = check(lambda m, x: m.g(m.a(m.f(x))), 6, f=nn.Linear(6, 5), a=module, g=nn.Linear(5, 4))
    assert [node.get("activation") for node in program.graph["nodes"]] == [op, None]
    assert ops(check(lambda m, x: m.a(x + 1.0), 6, a=module)) == ["add", op]


def test_every_activation_comes_of_an_operator():
    assert {op for _, op in MODULES} == set(ACTIVATIONS)


def test_convolutions():
    for options in (
        {"padding": "same"},
        {"padding": "valid"},
        {"stride": (2, 1), "padding": (2, 0), "dilation": (1, 2)},
        {"groups": 2, "bias": False},
    ):
        check(lambda m, x: m.c(x), 4, 9, 8, c=nn.Conv2d(4, 6, (3, 2), **options))
    uneven = check(lambda m, x: m.c(x), 4, 9, 8, c=nn.Conv2d(4, 6, (4, 3), padding="same"))
    assert ops(uneven) == ["pad", "conv"]
    check(lambda m, x: m.c(x), 4, 9, c=nn.Conv1d(4, 6, 3, padding="same", dilation=2))
    check(lambda m, x: m.c(x), 4, 9, 8, c=nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=1))


def test_pools():
    check(lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), 4, 9, 8)
    check(lambda m, x: F.max_pool1d(x, 2), 4, 9)
    check(lambda m, x: F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False, ceil_mode=True), 4, 9, 8)
    check(lambda m, x: F.avg_pool2d(x, 3, divisor_override=2), 4, 9, 8)
    check(lambda m, x: F.avg_pool1d(x, 3), 4, 9)
    check(lambda m, x: F.adaptive_avg_pool2d(x, (3, 1)), 4, 9, 8)
    check(lambda m, x: F.adaptive_avg_pool1d(x, 1).flatten(1), 4, 9)
    check(lambda m, x: F.adaptive_max_pool2d(x, 1).flatten(1), 4, 9, 8)
    for dims in ((2, 3), -1, (-2, -1)):
        check(lambda m, x, dims=dims: x.mean(dims) + 1, 4, 9, 8)
    check(lambda m, x: x.sum(1, keepdim=True) + x.amax((1, 2), keepdim=True), 4, 9, 8)


def test_norms():
    check(lambda m, x: m.n(x), 4, 6, n=nn.LayerNorm(6))
    check(lambda m, x: m.n(x), 4, 6, n=nn.LayerNorm((4, 6), elementwise_affine=False))
    check(lambda m, x: m.n(x), 4, 6, 5, n=nn.GroupNorm(2, 4))
    check(lambda m, x: m.n(x), 4, 6, 5, n=nn.InstanceNorm2d(4, affine=True))
    check(lambda m, x: F.log_softmax(x, 1) + x.softmax(-1), 4, 6)


def test_arithmetic():
    check(lambda m, x: (1 - x) * 2 / (x * x + 3) - 0.5, 4, 6)
    check(lambda m, x: 2 / (x * x + 1) - x, 4, 6)
    check(lambda m, x: torch.add(x, x.mean(2, keepdim=True), alpha=3) - torch.rsub(x, 2, alpha=2), 4, 6)
    check(lambda m, x: -x + torch.tensor(2.0) * x, 4, 6)
    check(lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid(), 4, 6, 5)

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(numbers(1, 4, 6))
            self.row = nn.Parameter(numbers(6))

        def forward(self, x):
            return self.row / (self.place.abs() + 1) - x * self.row

    program = check(lambda m, x: m.s(x), 4, 6, s=Shifted())
    assert ops(program) == ["mul", "sub"]  # what the input does not reach is computed once
    assert program.graph["nodes"][1]["reversed"]


def test_moving_data():
    check(lambda m, x: x.view(x.size(0), -1)[:, 3:-2], 4, 6)
    check(lambda m, x: x.reshape(len(x), 2, 2, -1).permute(0, 3, 1, 2).flatten(2), 4, 6)
    check(lambda m, x: x.unflatten(1, (2, 2)).transpose(1, 3).squeeze(1), 4, 1)
    check(lambda m, x: x[:, :, None].unsqueeze(-1).squeeze(-1).contiguous().clone(), 4, 6)
    check(lambda m, x: F.pad(x[:, :, ::2, 1::2], (0, 1, 2, 0, 1, 1), value=2.0), 4, 6, 5)
    check(lambda m, x: torch.cat([x.chunk(2, 1)[1], x.split([1, 3], 1)[1], x.narrow(1, 1, 2)], 1), 4, 6)
    check(lambda m, x: x[:, 1] + x[:, -1] + x.unbind(1)[2], 4, 6)
    check(lambda m, x: x @ x.transpose(1, 2), 4, 6)
    check(lambda m, x: m.d(x).float().detach().movedim(1, 2), 4, 6, d=nn.Dropout(0.5))
    weight = numbers(6, 3)
    assert ops(check(lambda m, x: torch.addmm(torch.ones(3), x, weight) + x @ weight, 6)) == [
        "linear",
        "linear",
        "add",
    ]


def test_attention_written_out():
    def attend(m, x):
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, 4)).permute(0, 2, 3, 1, 4).unbind(1)
        y = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
        return m.out(y.transpose(1, 2).flatten(2)) + x

    check(attend, 5, 8, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8))


def test_in_place_operators():
    def forward(m, x):
        y = m.f(x)
        y += x
        z = m.d(y)
        z.relu_()
        return y * 2

    check(forward, 6, f=nn.Linear(6, 6), d=nn.Dropout(0.5))


def test_several_inputs_and_outputs():
    model = After(lambda m, x, y: (m.f(x) * y, (x + 1).relu()), f=nn.Linear(6, 5))
    program = program_of(model, (numbers(2, 6), numbers(2, 5)))
    assert len(program.graph["inputs"]) == len(program.graph["outputs"]) == 2
    assert off(model, program, numbers(3, 6), numbers(3, 5)) < 1e-5


def test_keywords_and_embeddings():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(11, 4), nn.Linear(4, 3)

        def forward(self, tokens, scale):
            return self.out(self.words(tokens).mean(1)) * scale

    model = Words()
    inputs = {"tokens": torch.tensor([[1, 2, 10], [0, 0, 3]]), "scale": numbers(2, 1)}
    program = program_of(model, inputs)
    assert [spec["dtype"] for spec in program.graph["inputs"]] == ["int64", "float32"]
    assert off(model, program, inputs["tokens"], inputs["scale"]) < 1e-5


def test_tied_weights_are_kept_once():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    program = check(lambda m, x: m.g(m.f(x)), 6, f=first, g=second)
    assert set(program.tensors) == {"f.weight", "f.bias", "g.bias"}


def test_a_weight_that_is_computed_from_parameters():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    assert ops(check(lambda m, x: m.f(x), 6, f=layer)) == ["linear"]


# -- the table of rules, and operators of users ----------------------------------------------------------


def test_every_key_of_the_tables_is_an_operator_and_stands_once():
    """A name that this torch does not have fails at import; one that stands twice is read in the source."""
    names = [
        node.attr
        for module in TABLES
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_ATEN"
    ]
    assert len(names) == len(set(names)) == len(_RULES)
    for packet in _RULES:
        assert isinstance(packet, torch._ops.OpOverloadPacket)


@pytest.fixture(scope="module")
def mylib():
    """Operators of a user: one with the name of torch's and another meaning, and two that are torch's."""

    @torch.library.custom_op("ofusers::relu", mutates_args=())
    def relu(x: torch.Tensor) -> torch.Tensor:
        return x.flip(1)

    @torch.library.custom_op("ofusers::rectified", mutates_args=())
    def rectified(self: torch.Tensor) -> torch.Tensor:
        return self.clamp(min=0)

    @torch.library.custom_op("ofusers::doubled", mutates_args=())
    def doubled(self: torch.Tensor) -> torch.Tensor:
        return self.clamp(min=0) * 2

    for operator in (relu, rectified, doubled):
        operator.register_fake(torch.empty_like)
    return torch.ops.ofusers


def test_an_operator_of_a_users_is_not_taken_for_torchs_by_its_name(mylib):
    with pytest.raises(ModelError, match=r"ofusers\.relu.* has no counterpart"):
        program_of(After(lambda m, x: mylib.relu(x)), numbers(2, 6))


def test_an_operator_that_a_user_says_is_like_another(mylib):
    with pytest.raises(ModelError, match=r"ofusers\.rectified.* has no counterpart"):
        program_of(After(lambda m, x: mylib.rectified(x)), numbers(2, 6))
    for operator in (mylib.rectified, mylib.doubled):
        sc.register_operator(operator, like=torch.ops.aten.relu)
    with pytest.raises(ModelError, match=r"has no argument 'self', which aten\.relu has"):
        sc.register_operator(mylib.relu, like=torch.ops.aten.relu)
    try:
        assert ops(check(lambda m, x: mylib.rectified(x), 6)) == ["relu"]
        with pytest.raises(ModelError, match=r"an operator of its own is not"):
            program_of(After(lambda m, x: mylib.doubled(x)), numbers(2, 6))
    finally:
        for operator in (mylib.rectified, mylib.doubled):
            sc.forget_operator(operator)


def test_an_argument_that_a_program_has_not():
    with pytest.raises(ModelError, match=r"has scale=2"):
        program_of(After(lambda m, x: torch.ops.aten.elu(x, 1.0, 2.0)), numbers(2, 6))
    with pytest.raises(ModelError, match="bounds that are tensors"):
        program_of(After(lambda m, x: x.clamp(min=x.mean(1, keepdim=True))), numbers(2, 6))


def test_powers_and_lengths():
    check(lambda m, x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(), 4, 6)
    check(lambda m, x: (x.square() + 0.1).sqrt() + (x.square() + 0.1) ** 1.5, 4, 6)
    check(lambda m, x: F.normalize(x, dim=-1) + torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True), 4, 6)


def test_rms_norms():
    check(lambda m, x: m.n(x), 4, 6, n=nn.RMSNorm(6, eps=1e-3))
    check(lambda m, x: F.rms_norm(x, (4, 6)), 4, 6)
    with pytest.raises(ModelError, match="along the batch"):
        program_of(After(lambda m, x: F.rms_norm(x, x.shape)), numbers(2, 6))


def test_what_attends_may_be_a_constant():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.keys = nn.Parameter(numbers(1, 1, 2, 3)), nn.Linear(6, 12)

        def forward(self, x):
            k, v = self.keys(x).view(-1, 4, 2, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
            query = self.query.expand(len(x), -1, -1, -1).transpose(1, 2)
            return F.scaled_dot_product_attention(query, k, v).transpose(1, 2).flatten(1)

    model = Pooled()
    program = program_of(model, numbers(2, 4, 6))
    for batch in (1, 5):
        assert off(model, program, numbers(batch, 4, 6, seed=batch)) < 1e-5


def test_stacks_and_other_names():
    check(lambda m, x: torch.stack([x, x * 2, torch.ones(len(x), 6)], 2).flatten(1), 6)
    check(lambda m, x: torch.stack([x, x + 1], dim=1).type_as(x), 4, 6)
    check(lambda m, x: torch.multiply(x, 2.0).subtract(torch.divide(x, 3.0)), 6)
    with pytest.raises(ModelError, match="moves the batch"):
        program_of(After(lambda m, x: torch.stack([x, x])), numbers(2, 6))


def test_keys_that_several_queries_share_are_repeated():
    check(lambda m, x: x[:, :, None].expand(-1, -1, 3, -1).reshape(len(x), 12, 6), 4, 6)
    assert ops(check(lambda m, x: x.expand(-1, 4, 6) + 1, 4, 6)) == ["add"]
    check(lambda m, x: x.repeat(1, 2, 3), 4, 6)
    with pytest.raises(ModelError, match="along the batch"):
        program_of(After(lambda m, x: x.repeat(2, 1)), numbers(2, 6))


# -- several rows an example ---------------------------------------------------------------------------


def windows(x, size=2):
    """(batch, height, width, channels) in windows, which stand where the batch was."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def image(x, height=4, width=6, size=2):
    x = x.view(-1, height // size, width // size, size, size, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


def test_windows_are_several_rows_of_an_example():
    program = check(lambda m, x: image(m.f(windows(x))).mean((1, 2)), 4, 6, 5, f=nn.Linear(5, 3))
    assert [node["rows"] for node in program.graph["nodes"] if "rows" in node] == [[6, 1], [1, 6]]
    check(lambda m, x: m.f(x.reshape(-1, 5)).reshape(-1, 12), 3, 5, f=nn.Linear(5, 4))


def test_what_is_laid_out_for_the_batch_is_the_same_for_every_example():
    first, table = nn.Parameter(numbers(1, 1, 5)), numbers(6, 1, 4)

    def masked(m, x):
        x = torch.cat([m.first.expand(len(x), -1, -1), x], 1)
        return windows(x.view(-1, 4, 6, 5)).mean(-1, keepdim=True).transpose(1, 2) + table.repeat(
            len(x), 1, 1
        )

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = first

        def forward(self, x):
            return masked(self, x)

    made = program_of(Masked(), numbers(2, 23, 5))
    assert ops(made).count("constant") == 2
    for batch in (1, 5):
        assert off(Masked(), made, numbers(batch, 23, 5)) < 1e-6
    assert execute(made.graph, made.arrays(), [np.zeros((0, 23, 5), np.float32)])[0].shape == (0, 1, 4)


def test_a_constant_that_differs_from_example_to_example_is_refused():
    with pytest.raises(ModelError, match=r"joins a constant|along the batch"):
        program_of(
            After(lambda m, x: torch.cat([x, torch.arange(len(x)).float()[:, None]], 1)), numbers(2, 6)
        )


@pytest.mark.parametrize("kind", ["plain", "scaled", "causal", "bool", "added", "windows"])
def test_attention(kind):
    keep = torch.ones(4, 4, dtype=torch.bool).tril(1)
    bias, apart = numbers(1, 3, 4, 4), numbers(6, 1, 4, 4)

    def attend(m, x):
        q, k, v = m.f(x).view(-1, 4, 3, 3, 2).permute(2, 0, 3, 1, 4).unbind(0)
        options = {
            "plain": {},
            "scaled": {"scale": 0.3},
            "causal": {"is_causal": True},
            "bool": {"attn_mask": keep},
            "added": {"attn_mask": bias},
            "windows": {"attn_mask": apart.repeat(len(q) // 6, 1, 1, 1)},
        }[kind]
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)

    shape = (4, 6, 5) if kind == "windows" else (4, 5)
    whole = (lambda m, x: attend(m, windows(x)).reshape(-1, 24, 6)) if kind == "windows" else attend
    assert "softmax" in ops(check(whole, *shape, f=nn.Linear(5, 18)))


def test_a_roll_is_two_parts_the_other_way_round():
    for shifts, dims in ((2, 1), (-1, 2), ((1, -2), (1, 2)), (0, 1), (9, 1)):
        check(lambda m, x, s=shifts, d=dims: torch.roll(x, s, d) * 1.0, 4, 6)
    with pytest.raises(ModelError, match="works along the batch"):
        program_of(After(lambda m, x: torch.roll(x, 1)), numbers(2, 6))
