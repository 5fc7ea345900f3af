"""Operators that move data: the columns that belong to a channel, written down by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.groups import members, only, reasons, singles
from networks.parts import After, Between

IMAGE = torch.zeros(2, 3, 6, 4)
ROWS = torch.zeros(5, 3)


def columns(a: nn.Module, op, b: nn.Module, x=ROWS) -> list[list[int]]:
    """The columns of ``b`` that each unit of ``a`` has, where rows i of ``a`` are unit i."""
    found = members(only(sc.trace(Between(a, op, b), x)))
    assert found["a.weight", 0] == singles(a.weight.shape[0])
    return found["b.weight", 1]


def test_flatten_of_channels_before_positions():
    got = columns(nn.Conv2d(3, 5, 3), lambda x: x.flatten(1), nn.Linear(40, 2), IMAGE)
    assert got == [list(range(8 * c, 8 * c + 8)) for c in range(5)]


def test_flatten_of_channels_last():
    got = columns(nn.Conv2d(3, 5, 3), lambda x: x.permute(0, 2, 3, 1).flatten(1), nn.Linear(40, 2), IMAGE)
    assert got == [list(range(c, 40, 5)) for c in range(5)]


def test_flip_reverses():
    assert columns(nn.Linear(3, 4), lambda x: x.flip(-1), nn.Linear(4, 2)) == [[3], [2], [1], [0]]


def test_transpose_there_and_back():
    assert columns(nn.Linear(3, 4), lambda x: x.t().contiguous().t(), nn.Linear(4, 2)) == singles(4)


def test_repeat_and_tile():
    assert columns(nn.Linear(3, 4), lambda x: x.repeat(1, 2), nn.Linear(8, 2)) == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3, 7],
    ]


def test_repeat_interleave():
    got = columns(nn.Linear(3, 4), lambda x: x.repeat_interleave(2, -1), nn.Linear(8, 2))
    assert got == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_padding_of_the_channels_stays():
    net = Between(nn.Linear(3, 4), lambda x: F.pad(x, (1, 2)), nn.Linear(7, 2))
    structure = sc.trace(net, ROWS)
    assert members(only(structure))["b.weight", 1] == [[1], [2], [3], [4]]
    (protected,) = [p for p in structure.protected if (p.name, p.dim) == ("b.weight", 1)]
    assert (protected.kept, protected.size, protected.reason) == (3, 7, "beside padding")


def test_two_dims_that_meet_go_by_the_first_alone():
    """(T, C) flattened together: channel c is columns c, C + c, ..."""
    got = columns(nn.Linear(3, 4), lambda x: x.flatten(1), nn.Linear(20, 2), torch.zeros(2, 5, 3))
    assert got == [list(range(c, 20, 4)) for c in range(4)]


def test_pixel_shuffle_takes_four_channels_to_one():
    found = members(
        only(sc.trace(Between(nn.Conv2d(3, 20, 1), nn.PixelShuffle(2), nn.Conv2d(5, 2, 1)), IMAGE))
    )
    assert found["a.weight", 0] == [list(range(4 * c, 4 * c + 4)) for c in range(5)]
    assert found["b.weight", 1] == singles(5)


def test_pixel_unshuffle_makes_four_channels_of_one():
    got = columns(nn.Conv2d(3, 5, 1), nn.PixelUnshuffle(2), nn.Conv2d(20, 2, 1), IMAGE)
    assert got == [list(range(4 * c, 4 * c + 4)) for c in range(5)]


def test_unfold_lists_the_window_of_each_channel():
    got = columns(nn.Conv2d(3, 5, 1), lambda x: F.unfold(x, 2).transpose(1, 2), nn.Linear(20, 2), IMAGE)
    assert got == [list(range(4 * c, 4 * c + 4)) for c in range(5)]


def test_equal_chunks_are_tied_to_each_other():
    def op(net, x):
        a, b = net.a(x).chunk(2, -1)
        return net.b(a.tanh() * b)

    found = members(only(sc.trace(After(op, a=nn.Linear(3, 8), b=nn.Linear(4, 2)), ROWS)))
    assert found["a.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert found["b.weight", 1] == singles(4)


def test_chunks_read_apart_stay_equal_all_the_same():
    def op(net, x):
        a, b = net.a(x).chunk(2, -1)
        return net.b(a), net.c(b)

    net = After(op, a=nn.Linear(3, 8), b=nn.Linear(4, 2), c=nn.Linear(4, 5))
    found = members(only(sc.trace(net, ROWS)))
    assert found["a.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert found["b.weight", 1] == found["c.weight", 1] == singles(4)


def test_parts_of_an_uneven_split_go_each_for_itself():
    def op(net, x):
        a, b = net.a(x).split([3, 5], -1)
        return net.b(a), net.c(b)

    net = After(op, a=nn.Linear(3, 8), b=nn.Linear(3, 2), c=nn.Linear(5, 4))
    first, second = sc.trace(net, ROWS).groups.values()
    assert members(first)["a.weight", 0] == [[0], [1], [2]]
    assert members(first)["b.weight", 1] == singles(3)
    assert members(second)["a.weight", 0] == [[3], [4], [5], [6], [7]]
    assert members(second)["c.weight", 1] == singles(5)


def test_a_slice_carries_its_labels():
    def op(net, x):
        y = net.a(x)
        return net.b(y[:, ::2])

    groups = sc.trace(After(op, a=nn.Linear(3, 6), b=nn.Linear(3, 2)), ROWS).groups
    read = next(g for g in groups.values() if ("b.weight", 1) in members(g))
    assert members(read)["a.weight", 0] == [[0], [2], [4]]


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (lambda net, x: net.b(net.a(x).roll(1, -1)), "rolled"),
        (lambda net, x: net.b(net.a(x)[:, 1:2].expand(-1, 4)), "fixed index"),
        (lambda net, x: sum(net.a(x).unbind(-1)), "unbound"),
        (lambda net, x: net.a(x).select(-1, 3), "fixed index"),
        (lambda net, x: net.a(x).select(-1, -4), "fixed index"),
    ],
)
def test_what_freezes_a_dim_is_said(op, reason):
    structure = sc.trace(After(op, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), ROWS)
    assert reason in reasons(structure)["a.weight", 0]
    assert not structure.groups


def test_heads_and_positions_of_a_view():
    def op(net, x):
        y = net.a(x).view(-1, 2, 3)
        return net.b(y.transpose(1, 2).reshape(-1, 6))

    found = members(only(sc.trace(After(op, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), ROWS)))
    assert found["a.weight", 0] == [[0, 3], [1, 4], [2, 5]]
    assert found["b.weight", 1] == [[0, 1], [2, 3], [4, 5]]


def test_channel_shuffle_ties_whole_rows_of_its_grid():
    net = Between(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    for made, read in zip(found["a.weight", 0], found["b.weight", 1], strict=True):
        assert sorted((c % 4) * 3 + c // 4 for c in made) == read


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_constant_permutation(order):
    net = After(
        lambda net, x: net.b(net.a(x)[:, net.order]),
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 2),
        order=torch.tensor(order),
    )
    found = members(only(sc.trace(net, ROWS)))
    assert found["b.weight", 1] == [[order.index(i)] for i in range(6)]


@given(st.integers(1, 3), st.integers(2, 3), st.integers(2, 3), st.permutations([1, 2, 3]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_permutation_of_an_image_before_a_flattening(c, h, w, dims):
    net = Between(
        nn.Conv2d(2, c + 1, 1), lambda x: x.permute(0, *dims).flatten(1), nn.Linear((c + 1) * h * w, 2)
    )
    found = members(only(sc.trace(net, torch.zeros(2, 2, h, w))))
    tags = torch.arange(c + 1)[:, None, None].expand(c + 1, h, w)[None].permute(0, *dims).flatten().tolist()
    assert found["b.weight", 1] == [[i for i, t in enumerate(tags) if t == unit] for unit in range(c + 1)]


def test_a_tensor_too_large_to_follow_is_frozen(monkeypatch):
    monkeypatch.setattr("secateur.structure.rules.movement._MOST", 1)
    net = Between(nn.Linear(3, 4), lambda x: x.flip(-1), nn.Linear(4, 2))
    assert reasons(sc.trace(net, ROWS))["a.weight", 0] == "too large to follow"
