"""Which groups modules can lose is known before anything is pruned."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from networks.parts import After
from secateur.errors import TargetError

X = torch.randn(5, 3)


def written(net, x):
    """Half of the forward has its size written in."""
    y = net.b(net.a(x).tanh().reshape(-1, 8))
    return y, net.d(net.c(x).tanh())


def network(forward=written):
    torch.manual_seed(0)
    layers = {"a": nn.Linear(3, 8), "b": nn.Linear(8, 2), "c": nn.Linear(3, 6), "d": nn.Linear(6, 2)}
    return After(forward, **layers)


def test_what_stays_is_known_and_left_alone():
    net = network()
    before = copy.deepcopy(net.state_dict())
    structure = sc.trace(net, X)
    assert list(structure.stays) == ["a -> b"]
    assert "shape '[-1, 8]' is invalid" in structure.stays["a -> b"]
    assert "stays, but in form='graph': a -> b" in repr(structure)
    assert list(structure.removable) == ["c -> d"]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    assert set(masks.units) == {"c -> d"}
    assert any("a -> b" in note and "removable_only=False" in note for note in masks.notes)
    assert torch.equal(net.a.weight, before["a.weight"])
    small, proof = sc.compact(net, X, structure=structure)
    assert not proof.kept
    assert (small.a.out_features, small.c.out_features) == (8, 3)


def test_the_old_way_zeroes_what_stays_and_a_graph_loses_it():
    net = network()
    structure = sc.trace(net, X)
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, removable_only=False)
    assert set(masks.units) == {"a -> b", "c -> d"}
    assert list(sc.compact(net, X, structure=structure)[1].kept) == ["a -> b"]
    assert not sc.compact(net, X, structure=structure, form="graph")[1].kept


def test_nothing_left_to_prune_is_an_error_that_says_the_way_out():
    net = network()
    structure = sc.trace(net, X)
    with pytest.raises(TargetError, match="removable_only=False"):
        sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, include="a*")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_in_every_dtype(dtype):
    assert list(sc.trace(network().to(dtype), X.to(dtype)).stays) == ["a -> b"]


def test_of_a_model_on_the_meta_device_and_of_a_random_one_nothing_is_known():
    assert not sc.trace(network().to("meta"), X.to("meta")).stays
    noisy = network(lambda net, x: net.b(net.a(x) + torch.rand(5, 8)) + net.d(net.c(x)))
    assert not sc.trace(noisy, X).stays
