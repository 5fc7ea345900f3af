"""Sizes kept as plain attributes: found by running, taken only where the result is the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from networks.attention import FusedHeads, GroupedQuery
from networks.comparing import error, snapshot, unchanged, wide
from networks.drawn import randn
from secateur.structure.attributes import Change, adjust, changed_sizes, tried
from secateur.structure.surgery import removed_by

X = randn(5, 3, seed=5)


class Width(nn.Module):
    """A forward that reshapes to a size of its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.steps = width, 3
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.a(x).tanh().reshape(-1, self.width))


class Configured(nn.Module):
    """The size stands in a configuration, which a layer inside reads."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(width=8, depth=2)
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x).tanh().reshape(-1, self.config.width))


class Shape(nn.Module):
    """The size stands in a tuple."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.other = (3, 8)
        self.sizes = sizes
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x).tanh().reshape(self.sizes).flatten(-1))


class Split(nn.Module):
    """Two attributes that change together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = 6, 10
        self.a, self.b, self.c = nn.Linear(3, 16), nn.Linear(6, 2), nn.Linear(10, 4)

    def forward(self, x):
        a, b = self.a(x).split([self.first, self.second], -1)
        return self.b(a.tanh()), self.c(b.tanh())


class Layers(nn.Module):
    """The same attribute in each of several layers."""

    def __init__(self, number: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Width() for _ in range(number))
        self.back = nn.ModuleList(nn.Linear(2, 3) for _ in range(number))

    def forward(self, x):
        for layer, back in zip(self.layers, self.back, strict=True):
            x = x + back(layer(x))
        return x


def compacted(net: nn.Module, x, share: float = 0.5):
    structure = sc.trace(wide(net), x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(share), structure=structure, removable_only=False)
    before = snapshot(net)
    small, proof = sc.compact(net, x, structure=structure)
    assert error(net, small, x, torch.randn_like(x)) < 1e-9
    assert unchanged(net, before)
    return small, proof


def test_an_attribute_follows():
    net = Width()
    small, proof = compacted(net, X)
    assert proof.changed == ("width: 8 -> 4",)
    assert (small.width, small.steps, net.width) == (4, 3, 8)
    assert not proof.kept


def test_an_attribute_of_a_configuration_follows_in_the_copy_alone():
    net = Configured()
    small, proof = compacted(net, X)
    assert proof.changed == ("config.width: 8 -> 4",)
    assert (small.config.width, small.config.depth, net.config.width) == (4, 2, 8)


def test_a_tuple_follows_where_it_must():
    small, proof = compacted(Shape(5, 8), X)
    assert proof.changed == ("sizes: (5, 8) -> (5, 4)",)
    assert small.other == (3, 8)


@pytest.mark.parametrize("sizes", [(-1, 8), (5, 1, 8)])
def test_a_tuple_with_a_one_in_it_follows(sizes):
    class Inner(Shape):
        def forward(self, x):
            return self.b(self.a(x).tanh().reshape(self.sizes).reshape(5, -1))

    assert len(compacted(Inner(*sizes), X)[1].changed) == 1


def test_two_attributes_at_once():
    small, proof = compacted(Split(), X)
    assert set(proof.changed) == {"first: 6 -> 3", "second: 10 -> 5"}
    assert (small.first, small.second) == (3, 5)


def test_the_same_attribute_of_every_layer():
    small, proof = compacted(Layers(), X)
    assert len(proof.changed) == 4
    assert all(layer.width == 4 for layer in small.layers)


def test_layers_of_different_sizes_each_follow():
    net = Layers(2)
    net.layers[1] = Width(12)
    small, proof = compacted(net, X)
    assert [layer.width for layer in small.layers] == [4, 6]
    assert set(proof.changed) == {"layers.0.width: 8 -> 4", "layers.1.width: 12 -> 6"}


def test_numbers_of_heads_follow():
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    small, proof = compacted(FusedHeads(), x, 0.4)
    assert (small.heads, small.size) == (2, 4)
    assert proof.changed == ("heads: 3 -> 2",)
    assert not compacted(GroupedQuery(), x)[1].changed


def test_a_literal_size_keeps_its_group_and_says_why():
    class Literal(Width):
        def forward(self, x):
            return self.b(self.a(x).tanh().reshape(-1, 8))

    small, proof = compacted(Literal(), X)
    assert small.a.weight.shape == (8, 3)
    assert "breaks the forward" in proof.kept["a -> b"]
    assert "shape '[-1, 8]' is invalid" in proof.kept["a -> b"]
    assert proof.changed == ()
    assert small.width == 8


class LiteralOfThree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh().reshape(-1, 8)).tanh())


@pytest.mark.parametrize("batch", [5, 4])
def test_a_literal_size_keeps_no_other_group(batch):
    small, proof = compacted(LiteralOfThree(), torch.randn(batch, 3, dtype=torch.float64))
    assert list(proof.kept) == ["a -> b"]
    assert proof.removed == {"b -> c": (3, 6)}
    assert small.b.weight.shape == (3, 8)


def test_a_literal_that_changes_the_result_is_not_let_through():
    """No error is raised: the division gives another number."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x).tanh()
            return self.b(h) / h.shape[-1]

    small, proof = compacted(Scaled(), X)
    assert small.a.weight.shape == (8, 3)
    assert "outputs are off by" in proof.kept["a -> b"]


def test_an_attribute_that_would_give_another_result_is_not_taken():
    """Here the attribute only scales: it stays what it was."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).tanh()) / self.width

    small, proof = compacted(Scales(), X)
    assert (small.width, small.a.weight.shape[0], proof.changed) == (8, 4, ())


def test_sizes_that_change_by_module():
    net = Width()
    structure = sc.trace(net.double(), X)
    gone = np.zeros(8, dtype=bool)
    gone[:3] = True
    sizes = changed_sizes(structure, removed_by(structure, {"a -> b": gone}))
    assert sizes[""] == sizes["a"] == sizes["b"] == {8: {5}}


def test_nothing_is_adjusted_where_nothing_need_be():
    net = Width().double()
    assert adjust(net, {"": {8: {4}}}, lambda: net(X), lambda out: True)[0] == []


def test_an_unmendable_forward_is_left_as_it_was():
    net = Width().double()
    net.a = nn.Linear(3, 5).double()
    changes, attempt = adjust(net, {"": {8: {4}, 3: {2}}}, lambda: net(X), lambda out: True)
    assert (changes, net.width, net.steps) == ([], 8, 3)
    assert isinstance(attempt.error, RuntimeError)


def test_how_far_a_forward_came():
    net = Width().double()
    whole = tried(net, lambda: net(X))
    assert whole.error is None
    net.width = 7
    broken = tried(net, lambda: net(X))
    assert 0 < broken.finished < whole.finished
    assert broken.stack == [""]
    net.a.in_features = 3
    net.b = nn.Linear(4, 2).double()
    net.width = 8
    assert tried(net, lambda: net(X)).stack == ["", "b"]


@pytest.mark.parametrize(("inner", "text"), [(None, "a.width: 8 -> 4"), ("config", "a.config.width: 8 -> 4")])
def test_a_change_is_printed_and_undone(inner, text):
    net = nn.ModuleDict({"a": Width()})
    net["a"].config = SimpleNamespace(width=8)
    change = Change("a", inner, "width", 8, 4)
    assert str(change) == text
    change.apply(net)
    assert change.holder(net).width == 4
    change.undo(net)
    assert change.holder(net).width == 8
