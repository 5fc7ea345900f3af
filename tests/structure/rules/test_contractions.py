"""Products: linear layers, convolutions, recurrent layers and attention, and what each ties together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced import IMAGE, ROWS, SEQUENCE, rows, trace

import secateur as sc
from networks.groups import members, only, reasons, singles
from networks.parts import After
from networks.plain import mlp

# -- contractions ------------------------------------------------------------------------------------


def test_linear():
    group = only(sc.trace(mlp(3, 4, 2), ROWS))
    assert members(group) == {(name, dim): singles(4) for name, dim in rows("0", "2")}
    assert [part.reads for part in group.slices] == [False, False, True]
    assert group.parameters == 3 + 1 + 2


@pytest.mark.parametrize(
    "op",
    [
        lambda net, x: net.b(x @ net.w),
        lambda net, x: net.b(torch.mm(x, net.w)),
        lambda net, x: net.b(torch.einsum("bi,io->bo", x, net.w)),
        lambda net, x: net.b(torch.addmm(net.c, x, net.w)),
        lambda net, x: net.b(F.linear(x, net.w.t())),
    ],
)
def test_products_with_a_raw_parameter(op):
    net = After(op, w=nn.Parameter(torch.randn(3, 4)), c=nn.Parameter(torch.randn(4)), b=nn.Linear(4, 2))
    found = members(only(sc.trace(net, ROWS)))
    assert found["w", 1] == found["b.weight", 1] == singles(4)
    assert ("w", 0) not in found


def test_the_rank_between_two_parameters_is_a_group():
    net = After(
        lambda net, x: x @ (net.u @ net.v),
        u=nn.Parameter(torch.randn(3, 5)),
        v=nn.Parameter(torch.randn(5, 2)),
    )
    assert members(only(sc.trace(net, ROWS))) == {("u", 1): singles(5), ("v", 0): singles(5)}


def test_bilinear():
    net = After(
        lambda net, x: net.c(net.a(x), net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 5), c=nn.Bilinear(4, 5, 2)
    )
    first, second = sc.trace(net, ROWS).groups.values()
    assert members(first)["c.weight", 1] == singles(4)
    assert members(second)["c.weight", 2] == singles(5)


def test_einsum_over_heads():
    net = After(
        lambda net, x: torch.einsum("bthd,hde->bte", torch.einsum("bti,ihd->bthd", x, net.u), net.v),
        u=nn.Parameter(torch.randn(3, 2, 4)),
        v=nn.Parameter(torch.randn(2, 4, 5)),
    )
    found = [members(g) for g in sc.trace(net, SEQUENCE).groups.values()]
    assert {("u", 1): singles(2), ("v", 0): singles(2)} in found
    assert {("u", 2): singles(4), ("v", 1): singles(4)} in found


@pytest.mark.parametrize(
    ("kind", "x"),
    [(nn.Conv1d, (2, 3, 8)), (nn.Conv2d, (2, 3, 8, 6)), (nn.Conv3d, (2, 3, 4, 5, 6)), (nn.Conv2d, (3, 8, 6))],
)
def test_convolutions(kind, x):
    net = nn.Sequential(kind(3, 5, 3), nn.ReLU(), kind(5, 2, 2))
    group = only(sc.trace(net, torch.zeros(x)))
    assert members(group) == {place: singles(5) for place in rows("0", "2")}


def test_transposed_convolutions_have_their_channels_the_other_way_round():
    net = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.ConvTranspose2d(5, 2, 3))
    group = only(sc.trace(net, IMAGE))
    assert members(group) == {
        ("0.weight", 1): singles(5),
        ("0.bias", 0): singles(5),
        ("2.weight", 0): singles(5),
    }
    assert group.parameters == 3 * 4 + 1 + 2 * 9


def test_depthwise_convolution_goes_with_its_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, groups=5), nn.Conv2d(5, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    assert found == {place: singles(5) for place in [*rows("0", "2"), ("1.weight", 0), ("1.bias", 0)]}


def test_depth_multiplier():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    threes = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert found["0.weight", 0] == singles(4)
    assert found["1.weight", 0] == found["1.bias", 0] == found["2.weight", 1] == threes


def test_a_grouped_convolution_keeps_its_groups_equal():
    """Either whole groups go, or the same position of every group."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    structure = sc.trace(net, IMAGE)
    inputs, outputs = structure.groups.values()
    assert members(inputs)["0.weight", 0] == [[0, 3], [1, 4], [2, 5]]
    assert members(inputs)["1.weight", 1] == singles(3)
    assert (
        members(outputs)["1.weight", 0] == members(outputs)["2.weight", 1] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    )


def test_a_grouped_convolution_of_the_input_stays():
    net = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    structure = sc.trace(net, torch.zeros(2, 4, 5, 5))
    assert not structure.groups
    assert "grouped convolution of an unprunable tensor" in reasons(structure)["0.weight", 0]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_hidden_unit_has_a_row_in_every_gate(kind, gates):
    net = After(
        lambda net, x: net.b(net.a(x)[0]), a=kind(3, 5, num_layers=2, batch_first=True), b=nn.Linear(5, 2)
    )
    found = members(only(sc.trace(net, SEQUENCE)))
    rows = [[i + 5 * g for g in range(gates)] for i in range(5)]
    for layer in "01":
        assert found[f"a.weight_ih_l{layer}", 0] == found[f"a.weight_hh_l{layer}", 0] == rows
        assert found[f"a.bias_ih_l{layer}", 0] == found[f"a.bias_hh_l{layer}", 0] == rows
        assert found[f"a.weight_hh_l{layer}", 1] == singles(5)
    assert found["a.weight_ih_l1", 1] == found["b.weight", 1] == singles(5)


def test_both_directions_share_their_hidden_units():
    net = After(
        lambda net, x: net.b(net.a(x)[0]),
        a=nn.LSTM(3, 5, batch_first=True, bidirectional=True),
        b=nn.Linear(10, 2),
    )
    found = members(only(sc.trace(net, SEQUENCE)))
    assert found["b.weight", 1] == [[i, i + 5] for i in range(5)]
    assert found["a.weight_hh_l0_reverse", 1] == singles(5)


def test_an_initial_state_that_is_not_zero_freezes_the_hidden_units():
    def op(net, x):
        return net.b(net.a(x, torch.ones(1, 2, 5))[0])

    structure = trace(op, SEQUENCE, a=nn.GRU(3, 5, batch_first=True), b=nn.Linear(5, 2))
    assert not structure.groups
    assert reasons(structure)["a.weight_hh_l0", 1]


def test_a_cell():
    def op(net, x):
        h = torch.zeros(5, 4)
        return net.b(net.a(x, net.a(x, h)))

    found = members(only(trace(op, a=nn.GRUCell(3, 4), b=nn.Linear(4, 2))))
    assert found["a.weight_ih", 0] == [[i, i + 4, i + 8] for i in range(4)]
    assert found["a.weight_hh", 1] == singles(4)


# -- attention ---------------------------------------------------------------------------------------


def attention(scale):
    def op(net, x):
        q, k, v = (part(x).view(2, 5, 3, 4).transpose(1, 2) for part in (net.q, net.k, net.v))
        return net.o(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(3, 12, bias=False) for name in "qkv"}
    return After(op, **parts, o=nn.Linear(12, 2, bias=False))


def test_the_scale_of_the_scores_keeps_the_size_of_the_heads():
    fours = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    for scale in (None, 0.5):
        found = members(only(sc.trace(attention(scale), SEQUENCE)))
        assert found == {(f"{n}.weight", int(n == "o")): fours for n in "qkvo"}


def test_positions_of_heads_on_request_where_the_scale_is_given():
    structure = sc.trace(attention(0.5), SEQUENCE, heads="dims")
    positions = [[d, d + 4, d + 8] for d in range(4)]
    scores, values = structure.groups.values()
    assert members(scores) == {("q.weight", 0): positions, ("k.weight", 0): positions}
    assert members(values) == {("v.weight", 0): positions, ("o.weight", 1): positions}


def test_positions_of_queries_stay_where_they_set_the_scale():
    structure = sc.trace(attention(None), SEQUENCE, heads="dims")
    assert ("q.weight", 0) not in {place for g in structure.groups.values() for place in members(g)}
    assert ("v.weight", 0) in {place for g in structure.groups.values() for place in members(g)}
