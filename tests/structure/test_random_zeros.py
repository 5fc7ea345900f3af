"""Zeros of single weights: rows and columns that masks emptied go, and random zeros change nothing."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from networks.attention import FusedHeads, GroupedQuery
from networks.comparing import error, wide
from networks.drawn import ROWS, SEQUENCE
from networks.parts import After
from networks.plain import mlp
from networks.pruned import sprinkle

# -- unstructured zeros --------------------------------------------------------------------------------


def test_rows_that_masks_emptied_go():
    net = wide(mlp(3, 6, 2))
    kept = torch.ones(6, 3, dtype=torch.bool)
    kept[[0, 5]] = False
    masks = sc.Masks(net, {"0.weight": kept, "2.weight": torch.rand(2, 6) > 0.3}).apply()
    with torch.no_grad():
        net[0].bias[[0, 5]] = 0
    small, proof = sc.compact(net, ROWS, masks=masks)
    assert proof.removed["0 -> 2"][0] >= 2
    assert error(net, small, ROWS, torch.randn_like(ROWS)) < 1e-12
    proof.masks.check()


def test_columns_that_masks_emptied_go():
    net = wide(mlp(3, 6, 2))
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[:, [1, 2]] = False
    masks = sc.Masks(net, {"2.weight": kept}).apply()
    small, proof = sc.compact(net, ROWS, masks=masks)
    assert proof.removed == {"0 -> 2": (2, 6)}
    assert error(net, small, ROWS, torch.randn_like(ROWS)) < 1e-12
    assert proof.masks["2.weight"].all()


def test_one_neuron_stays_where_all_are_dead():
    net = wide(mlp(3, 5, 4, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[4].bias.fill_(3.0)
    small, proof = sc.compact(net, ROWS)
    assert [len(small[i].bias) for i in (0, 2, 4)] == [1, 1, 2]
    assert set(proof.kept.values()) == {"every unit is dead; one stays, so that no dim is empty"}
    assert small(ROWS).unique().tolist() == [3.0]


share = st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.95, 1.0])


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    share,
    st.integers(0, 10**6),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_mlps_with_random_zeros(sizes, zeros, seed, bias, which):
    torch.manual_seed(seed)
    activation = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU][which]
    net = sprinkle(wide(mlp(3, *sizes, 2, activation=activation, bias=bias)), zeros, seed)
    x = torch.randn(7, 3, dtype=torch.float64)
    small, proof = sc.compact(net, x)
    assert error(net, small, x, torch.randn(50, 3, dtype=torch.float64)) < 1e-9
    assert all(p.numel() for p in small.parameters())
    assert proof.parameters[1] <= proof.parameters[0]


def cnn(channels: list[int], padding: int, norm: bool, shortcut: bool, groups: int) -> nn.Module:
    def op(net, x):
        for conv, bn in zip(net.convs, net.norms, strict=True):
            y = bn(conv(x)).relu()
            x = x + y if shortcut and y.shape == x.shape else y
        return net.head(net.last(x).mean((2, 3)))

    sizes = [3, *(c * groups for c in channels)]
    pairs = list(pairwise(sizes))
    convs = [nn.Conv2d(a, b, 3, padding=padding, groups=groups if i else 1) for i, (a, b) in enumerate(pairs)]
    return After(
        op,
        convs=nn.ModuleList(convs),
        norms=nn.ModuleList(nn.BatchNorm2d(b) if norm else nn.Identity() for _, b in pairs),
        last=nn.Conv2d(sizes[-1], 4, 1),
        head=nn.Linear(4, 2),
    )


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 1), st.booleans(), st.booleans(),
    st.integers(1, 2), share, st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_cnns_with_random_zeros(channels, padding, norm, shortcut, groups, zeros, seed):
    torch.manual_seed(seed)
    net = wide(cnn(channels, padding, norm, shortcut, groups))
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    small, proof = sc.compact(sprinkle(net, zeros, seed), x)
    assert error(net, small, x, torch.randn(3, 3, 9, 8, dtype=torch.float64)) < 1e-9
    assert proof.parameters[1] <= proof.parameters[0]


@given(share, st.integers(0, 10**6), st.sampled_from([FusedHeads, GroupedQuery]))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_attention_with_random_zeros(zeros, seed, kind):
    torch.manual_seed(seed)
    net = sprinkle(wide(kind()), zeros, seed)
    small, _ = sc.compact(net, SEQUENCE)
    assert error(net, small, SEQUENCE, torch.randn(3, 5, 7, dtype=torch.float64)) < 1e-9
