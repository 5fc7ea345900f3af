"""Forwards, weights and outputs by which nothing can be proved: one clear error, or proved in another way."""

from __future__ import annotations

from random import SystemRandom

import pytest
import torch
from torch import nn

import secateur as sc
from networks.comparing import error, wide
from networks.drawn import ROWS
from networks.parts import After
from networks.plain import mlp
from networks.pruned import halved
from secateur.errors import ModelError, NonFiniteError


def test_a_forward_of_one_dtype_is_proved_in_it():
    net = After(
        lambda net, x: net.b(net.a(x) + torch.ones(1, 1, dtype=torch.float32).to(x) * 0),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 2),
    )
    cast = After(lambda net, x: net.b(net.a(x.float())), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    single = After(lambda net, x: net.b(net.a(_single(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert sc.compact(net, ROWS.float())[1].dtype == "float64"
    assert sc.compact(cast, ROWS.float())[1].dtype == "float64"
    assert sc.compact(single, ROWS.float())[1].dtype == "float32"


def _single(x):
    if x.dtype != torch.float32:
        raise TypeError("a kernel for single precision alone")
    return x


# -- refusals ----------------------------------------------------------------------------------------------


def test_a_random_forward_is_one_clear_error():
    noise = SystemRandom().random  # no state that could be set back
    net = After(lambda net, x: net.b(net.a(x) + noise()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ModelError, match="is its forward random in eval mode"):
        sc.compact(net, ROWS.float())


def test_one_sample_gives_no_wrong_result():
    for seed in range(12):
        torch.manual_seed(seed)
        net = wide(mlp(4, 3, 2))
        with torch.no_grad():
            net[0].bias.zero_()
        small, _ = sc.compact(net, torch.randn(1, 4, dtype=torch.float64))
        assert error(net, small, torch.randn(50, 4, dtype=torch.float64)) < 1e-9, seed


# -- proofs that would prove nothing -----------------------------------------------------------------------


def test_integer_outputs_are_compared():
    def op(net, x):
        h = net.a(x).relu()
        return net.b(h * (h.shape[-1] - 10)).argmax(-1)  # the sign hangs on the size

    net = After(op, a=nn.Linear(3, 16), b=nn.Linear(16, 30))
    x = torch.randn(64, 3, dtype=torch.float64)
    halved(net, x)
    small, proof = sc.compact(net, x)
    assert torch.equal(net(x), small(x))
    assert "outputs are off by inf" in proof.kept["a -> b"]


def test_outputs_that_cannot_be_compared_are_an_error():
    net = After(lambda net, x: "nothing", a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ModelError, match="puts out no tensor"):
        sc.compact(net, ROWS.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    net = mlp(3, 6, 2)
    with torch.no_grad():
        net[2].bias[1] = value
    with pytest.raises(NonFiniteError, match=r"2\.bias"):
        sc.compact(net, ROWS.float())


def test_outputs_that_are_nan_throughout_are_an_error():
    net = After(lambda net, x: net.b(net.a(x).relu()).exp().neg().log(), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(NonFiniteError, match="nothing but NaN"):
        sc.compact(net, ROWS.float())


def test_infinities_of_a_mask_are_equal():
    mask = torch.full((6, 6), -torch.inf).triu(1)
    net = After(lambda net, x: net.b(net.a(x).relu()) @ net.b(net.a(x).relu()).T + net.m,
                a=nn.Linear(3, 6), b=nn.Linear(6, 2), m=mask)  # fmt: skip
    halved(net, ROWS)
    assert sc.compact(net, ROWS)[1].removed["a -> b"] == (3, 6)


def test_redrawn_inputs_that_give_nan_are_left_out():
    net = After(lambda net, x: net.b(net.a(x.log()).relu()).sum(0), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    x = torch.randn(40, 3, dtype=torch.float64).mul(2).exp()  # redrawn from a normal: some are negative
    halved(net, x)
    proof = sc.compact(net, x)[1]
    assert (proof.inputs, proof.removed) == (2, {"a -> b": (3, 6)})  # in eval and in training mode


def test_inputs_of_the_wrong_dtype_are_one_clear_error():
    net = mlp(3, 6, 2).double()
    structure = sc.trace(net, ROWS)
    with pytest.raises(ModelError, match=r"Sequential does not run on example inputs .*float32"):
        sc.compact(net, ROWS.float(), structure=structure)


def test_the_reason_of_a_failure_is_a_sentence():
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).tanh().reshape(-1, 8))

    net = Literal()
    halved(net, ROWS)
    assert "['" not in sc.compact(net, ROWS)[1].kept["a -> b"]
