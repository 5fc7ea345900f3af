"""Rules of the operators: what each ties together, what it freezes, and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced import IMAGE, ROWS, SEQUENCE, pair, trace

import secateur as sc
from networks.groups import members, only, reasons, singles
from networks.parts import After, Between

# -- pointwise, reductions, joins ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        F.relu,
        F.gelu,
        torch.sigmoid,
        torch.exp,
        F.dropout,
        lambda x: x * 2 + 1,
        lambda x: x.clamp(0, 1),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.masked_fill(x < 0, 0.0),
        lambda x: x.to(torch.float64).float(),
    ],
)
def test_pointwise_operators_carry_over(op):
    assert members(only(pair(op)))["b.weight", 1] == singles(4)


def test_addition_ties_both_makers():
    net = After(
        lambda net, x: net.c(net.a(x) + net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2)
    )
    found = members(only(sc.trace(net, ROWS)))
    assert found["a.weight", 0] == found["b.weight", 0] == found["c.weight", 1] == singles(4)


def test_a_gate_of_one_number_ties_nothing():
    net = After(
        lambda net, x: net.c(net.a(x) * net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 1), c=nn.Linear(4, 2)
    )
    assert ("b.weight", 0) not in members(only(sc.trace(net, ROWS)))


def test_meeting_the_input_freezes():
    net = After(lambda net, x: net.b(net.a(x) + x), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    structure = sc.trace(net, ROWS)
    assert not structure.groups
    assert reasons(structure)["a.weight", 0] == "combined with an unprunable tensor"


def test_a_sum_is_over_zeros_only_as_long_as_they_stay_zero():
    outside = {"a": nn.Linear(3, 4), "b": nn.Linear(5, 2)}
    kept = trace(lambda net, x: net.b(net.a(x).relu().sum(-1)), SEQUENCE, **outside)
    assert members(only(kept))["a.weight", 0] == singles(4)
    for change in (torch.sigmoid, torch.exp, lambda x: x + 1):
        lost = trace(lambda net, x, change=change: net.b(change(net.a(x)).sum(-1)), SEQUENCE, **outside)
        assert not lost.groups
        assert reasons(lost)["a.weight", 0] == "reduced by sum"


@pytest.mark.parametrize("name", ["mean", "amax", "var", "prod", "logsumexp"])
def test_other_reductions_freeze_what_they_run_along(name):
    structure = trace(
        lambda net, x: net.b(getattr(net.a(x), name)(-1)), SEQUENCE, a=nn.Linear(3, 4), b=nn.Linear(5, 2)
    )
    assert reasons(structure)["a.weight", 0] == f"reduced by {name}"


@pytest.mark.parametrize("name", ["mean", "amax", "var", "sum"])
def test_reductions_over_positions_leave_the_channels(name):
    structure = trace(
        lambda net, x: net.b(getattr(net.a(x), name)(1)), SEQUENCE, a=nn.Linear(3, 4), b=nn.Linear(4, 2)
    )
    assert members(only(structure))["b.weight", 1] == singles(4)


@pytest.mark.parametrize(("op", "name"), [(torch.softmax, "softmax"), (torch.log_softmax, "log_softmax")])
def test_softmax_freezes_what_it_runs_along(op, name):
    assert reasons(pair(lambda x: op(x, -1)))["a.weight", 0] == f"{name} runs along it"
    assert only(pair(lambda x: op(x, 1), SEQUENCE))


def test_a_normalised_embedding_may_lose_zeros():
    """x / |x|: the length of x does not see a zero."""
    structure = pair(lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6))
    assert members(only(structure))["b.weight", 1] == singles(4)


def test_cat_beside_the_input_keeps_the_inputs_columns():
    net = After(lambda net, x: net.b(torch.cat([x, net.a(x)], -1)), a=nn.Linear(3, 4), b=nn.Linear(7, 2))
    assert members(only(sc.trace(net, ROWS)))["b.weight", 1] == [[3], [4], [5], [6]]


def test_cat_along_another_dim_ties():
    net = After(
        lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 0)),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2),
    )  # fmt: skip
    found = members(only(sc.trace(net, ROWS)))
    assert found["a.weight", 0] == found["b.weight", 0] == singles(4)


def test_cat_with_nothing_ties_nothing():
    """As rotary embeddings put what they turn beside what they do not, where they turn everything."""
    net = After(
        lambda net, x: net.b(torch.cat([(y := net.a(x).view(5, 2, 4)), y[..., 4:]], -1).flatten(1)),
        a=nn.Linear(3, 8), b=nn.Linear(8, 2),
    )  # fmt: skip
    assert members(only(sc.trace(net, torch.ones(5, 3))))["a.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_stack_ties_and_its_own_dim_stays():
    net = After(
        lambda net, x: net.c(torch.stack([net.a(x), net.b(x)], 1).sum(1)),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2),
    )  # fmt: skip
    assert members(only(sc.trace(net, ROWS)))["b.weight", 0] == singles(4)


def test_glu_ties_the_gate_to_its_value():
    net = nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2))
    assert members(only(sc.trace(net, ROWS)))["0.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_prelu_with_a_slope_a_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.PReLU(5), nn.Conv2d(5, 2, 1))
    assert members(only(sc.trace(net, IMAGE)))["1.weight", 0] == singles(5)


def test_an_embedding_loses_columns_and_no_words():
    structure = sc.trace(
        nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2)), torch.zeros(2, 3, dtype=torch.long)
    )
    assert members(only(structure)) == {("0.weight", 1): singles(4), ("1.weight", 1): singles(4)}
    assert reasons(structure)["0.weight", 0] == "a vocabulary"


@pytest.mark.parametrize(
    "op",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
        lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    ],
)
def test_pooling_and_resizing_leave_the_channels(op):
    net = Between(nn.Conv2d(3, 5, 1), op, nn.Conv2d(5, 2, 1))
    assert members(only(sc.trace(net, IMAGE)))["b.weight", 1] == singles(5)
