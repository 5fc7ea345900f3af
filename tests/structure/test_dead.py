"""Which units go: masked, unread and constant ones, to a fixpoint, and constants into biases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from networks.comparing import error, wide
from networks.drawn import randn
from networks.groups import only
from networks.parts import After, Between
from networks.plain import Concat, mlp
from secateur.copying import copied
from secateur.structure.dead import find_dead

ROWS = randn(9, 3, seed=3)
IMAGE = randn(2, 3, 6, 5, seed=4)


@torch.no_grad()
def found(net: nn.Module, x, *changes) -> tuple[dict[str, list[int]], int, dict[str, str]]:
    """The units that go by group, after changes to the weights, and a check of what was folded."""
    wide(net)
    for tensor, index in changes:
        tensor[index] = 0
    structure = sc.trace(net, x)
    work = copied(net)
    dead = find_dead(work, structure)
    assert error(net, work, x, torch.randn_like(x)) < 1e-12
    gone = {name: np.flatnonzero(d).tolist() for name, d in dead.pruned.items() if d.any()}
    return gone, len(dead.constants), dead.kept


def test_nothing_is_dead():
    assert found(mlp(3, 5, 2), ROWS) == ({}, 0, {})


def test_masked_units_go():
    net = mlp(3, 5, 2)
    some = [1, 4]
    everything = ((net[0].weight, some), (net[0].bias, some), (net[2].weight, (slice(None), some)))
    assert found(net, ROWS, *everything) == ({"0 -> 2": [1, 4]}, 0, {})


def test_a_unit_with_zero_rows_is_always_zero():
    net = mlp(3, 5, 2)
    assert found(net, ROWS, (net[0].weight, 2), (net[0].bias, 2)) == ({"0 -> 2": [2]}, 0, {})


def test_a_unit_that_nobody_reads_goes():
    net = mlp(3, 5, 2)
    assert found(net, ROWS, (net[2].weight, (slice(None), 3))) == ({"0 -> 2": [3]}, 0, {})


def test_a_unit_that_one_of_two_layers_reads_stays():
    net = After(lambda net, x: (net.b(net.a(x).relu()), net.c(net.a(x).relu())),
                a=nn.Linear(3, 4), b=nn.Linear(4, 2), c=nn.Linear(4, 5))  # fmt: skip
    assert found(net, ROWS, (net.b.weight, (slice(None), [0, 1]))) == ({}, 0, {})
    assert found(net, ROWS, (net.c.weight, (slice(None), [1, 2]))) == ({"a -> b, c": [1]}, 0, {})


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softplus])
def test_a_constant_is_folded_into_the_next_bias(activation):
    net = mlp(3, 5, 2, activation=activation)
    with torch.no_grad():
        net[0].bias[2] = 1.5
    assert found(net, ROWS, (net[0].weight, 2)) == ({"0 -> 2": [2]}, 1, {})


def test_a_negative_constant_before_relu_is_zero():
    net = mlp(3, 5, 2)
    with torch.no_grad():
        net[0].bias[2] = -1.5
    assert found(net, ROWS, (net[0].weight, 2)) == ({"0 -> 2": [2]}, 0, {})


def test_the_folded_bias_is_exact():
    net = wide(mlp(3, 4, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = 2.0
    want = net[2].bias + 2 * net[2].weight[:, 1]
    small, proof = sc.compact(net, ROWS)
    assert proof.folded == 1
    assert torch.allclose(small[2].bias, want, rtol=0, atol=1e-14)
    assert not torch.equal(net[2].bias, want)


def test_no_bias_takes_nothing_up():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    gone, folded, kept = found(net, ROWS, (net[0].weight, 1))
    assert (gone, folded) == ({}, 0)
    assert "no bias" in kept["0 -> 2"]


def test_padding_takes_nothing_up():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1))
    gone, folded, kept = found(net, IMAGE, (net[0].weight, 1))
    assert (gone, folded) == ({}, 0)
    assert "padding" in kept["0 -> 2"]


def test_without_padding_a_convolution_takes_it_up():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3))
    assert found(net, IMAGE, (net[0].weight, 1)) == ({"0 -> 2": [1]}, 1, {})


def test_a_zero_behind_padding_goes_all_the_same():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    with torch.no_grad():
        net[0].bias[1] = -3.0
    assert found(net, IMAGE, (net[0].weight, 1)) == ({"0 -> 2": [1]}, 0, {})


def test_a_constant_through_a_batch_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].bias.fill_(5.0)
    assert found(net, IMAGE, (net[0].weight, [1, 2])) == ({"0 -> 3": [1, 2]}, 2, {})


def test_a_batch_norm_with_scale_zero_makes_a_constant():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[1].bias.fill_(5.0)
    assert found(net, IMAGE, (net[1].weight, 3)) == ({"0 -> 2": [3]}, 1, {})


def test_a_constant_that_a_flattening_spreads():
    net = Between(nn.Conv2d(3, 4, 2), lambda x: x.tanh().flatten(1), nn.Linear(80, 2))
    assert found(net, IMAGE, (net.a.weight, 1)) == ({"a -> b": [1]}, 1, {})


def test_a_constant_in_one_branch():
    net = Concat()
    with torch.no_grad():
        net.b.bias[2] = 1.0
    assert found(net, ROWS, (net.b.weight, 2)) == ({"b -> c": [2]}, 1, {})


def test_a_constant_beside_what_varies_stays():
    net = After(
        lambda net, x: net.c(net.a(x) + net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2)
    )
    assert found(net, ROWS, (net.a.weight, 1)) == ({}, 0, {})
    assert found(net, ROWS, (net.b.weight, 1)) == ({"a, b -> c": [1]}, 1, {})


def test_a_product_with_zero_is_zero():
    net = After(lambda net, x: net.c(net.a(x).sigmoid() * net.b(x)),
                a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2))  # fmt: skip
    assert found(net, ROWS, (net.b.weight, 1), (net.b.bias, 1)) == ({"a, b -> c": [1]}, 0, {})


def test_death_spreads_backwards_and_forwards():
    net = mlp(3, 4, 5, 6, 2)
    changes = (
        (net[6].weight, (slice(None), [0, 1])),  # nobody reads units 0 and 1 of the third layer
        (net[4].weight, (slice(2, None), 3)),  # so that nobody reads unit 3 of the second
        (net[2].weight, ([0, 1, 2, 4], 2)),  # nor unit 2 of the first
    )
    assert found(net, ROWS, *changes) == ({"0 -> 2": [2], "2 -> 4": [3], "4 -> 6": [0, 1]}, 0, {})
    other = mlp(3, 4, 5, 2)
    forward = (
        (other[0].weight, 0), (other[0].bias, 0),  # unit 0 is zero
        (other[2].weight, (1, slice(1, None))), (other[2].bias, 1),  # and all that unit 1 reads
    )  # fmt: skip
    assert found(other, ROWS, *forward) == ({"0 -> 2": [0], "2 -> 4": [1]}, 0, {})


def test_a_folded_constant_makes_the_next_one():
    net = mlp(3, 4, 5, 2, activation=nn.Tanh)
    changes = ((net[0].weight, 0), (net[2].weight, (1, slice(1, None))))
    assert found(net, ROWS, *changes) == ({"0 -> 2": [0], "2 -> 4": [1]}, 2, {})


def test_one_unit_stays_where_all_are_dead():
    net = mlp(3, 4, 2)
    gone, _, kept = found(net, ROWS, (net[0].weight, slice(None)), (net[0].bias, slice(None)))
    assert gone == {"0 -> 2": [1, 2, 3]}
    assert kept == {"0 -> 2": "every unit is dead; one stays, so that no dim is empty"}


def test_a_unit_that_is_summed_as_well_is_read():
    net = After(
        lambda net, x: (net.b(net.a(x).relu()), net.a(x).relu().sum(-1)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)
    )
    assert found(net, ROWS, (net.b.weight, (slice(None), 1))) == ({}, 0, {})


def test_a_hidden_unit_of_a_recurrence_goes_when_all_its_gates_are_zero():
    net = After(lambda net, x: net.b(net.a(x)[0]), a=nn.LSTM(3, 4, batch_first=True), b=nn.Linear(4, 2))
    rows, x = [1, 5, 9, 13], torch.randn(2, 5, 3, dtype=torch.float64)
    tensors = [net.a.weight_ih_l0, net.a.weight_hh_l0, net.a.bias_ih_l0, net.a.bias_hh_l0]
    columns = [(t, (slice(None), 1)) for t in (net.a.weight_hh_l0, net.b.weight)]
    gone, folded, kept = found(net, x, *((t, rows) for t in tensors), *columns)
    assert (list(gone.values()), folded, kept) == ([[1]], 0, {})


# -- found while these tests were written --------------------------------------------------------------


def dying() -> nn.Sequential:
    """No bias, one sample: relu gives 0 for it and would not for others."""
    net = wide(mlp(4, 3, 2))
    with torch.no_grad():
        net[0].bias.zero_()
    return net


def test_a_batch_of_one_makes_nothing_constant():
    for seed in range(12):
        torch.manual_seed(seed)
        net = dying()
        x = torch.randn(1, 4, dtype=torch.float64)
        dead = find_dead(copied(net), sc.trace(net, x))
        assert not any(gone.any() for gone in dead.pruned.values()), seed


def test_one_token_makes_nothing_constant():
    net = wide(nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    with torch.no_grad():
        net[1].bias.zero_()
    small, _ = sc.compact(net, torch.tensor([[3]]))
    assert error(net, small, torch.arange(11)[None]) < 1e-9


def test_a_constant_that_one_layer_reads_twice():
    net = After(
        lambda net, x: net.s(net.a(x).relu()) + 2 * net.s(net.a(x).relu() * 1.0),
        a=nn.Linear(3, 4),
        s=nn.Linear(4, 2),
    )
    with torch.no_grad():
        net.a.bias[1] = 2.0
    assert found(net, ROWS, (net.a.weight, 1))[1] in (0, 1)


def test_different_constants_that_one_layer_reads():
    net = After(lambda net, x: net.s(net.a(x).relu()) + 2 * net.s(net.b(x).relu()),
                a=nn.Linear(3, 4), b=nn.Linear(3, 4), s=nn.Linear(4, 2))  # fmt: skip
    with torch.no_grad():
        net.a.bias[1], net.b.bias[1] = 2.0, 3.0
    assert found(net, ROWS, (net.a.weight, 1), (net.b.weight, 1))[0] == {}


def test_what_a_grouped_convolution_reads_is_read():
    net = After(lambda net, x: (net.g(net.a(x).relu()), net.b(net.a(x).relu())),
                a=nn.Conv2d(3, 6, 1), g=nn.Conv2d(6, 4, 1, groups=2), b=nn.Conv2d(6, 5, 1))  # fmt: skip
    assert only(sc.trace(net.double(), IMAGE))
    assert found(net, IMAGE, (net.b.weight, (slice(None), [1, 4]))) == ({}, 0, {})


# -- constants that hang on the size of the input ------------------------------------------------------


def pooled(how, last: nn.Module) -> nn.Module:
    return After(lambda net, x: net.b(how(net.a(x).relu())), a=nn.Conv2d(3, 4, 1), b=last)


@torch.no_grad()
def dead_with_bias(net: nn.Module, unit: int = 1) -> nn.Module:
    net.a.weight[unit], net.a.bias[unit] = 0, 0.7
    return net


POOLS = {
    "sum": (lambda h: h.sum((2, 3)), nn.Linear(4, 2)),
    "cumsum": (lambda h: h.cumsum(2).amax((2, 3)), nn.Linear(4, 2)),
    "sum, kept": (lambda h: h.sum((2, 3), keepdim=True), nn.Conv2d(4, 2, 1)),
    "norm": (lambda h: h.flatten(2).norm(dim=2), nn.Linear(4, 2)),
    "var of the size": (lambda h: h.flatten(2).logsumexp(2), nn.Linear(4, 2)),
    "padded average": (lambda h: nn.functional.avg_pool2d(h, 3, 1, 1).amax((2, 3)), nn.Linear(4, 2)),
    "matmul": (lambda h: (h.flatten(2) @ h.new_ones(h.shape[2] * h.shape[3], 1))[..., 0], nn.Linear(4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", POOLS)
def test_a_constant_of_one_size_alone_stays(kind):
    how, last = POOLS[kind]
    net = wide(dead_with_bias(pooled(how, last)))
    small, proof = sc.compact(net, IMAGE)
    other = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    assert error(net, small, IMAGE, other) < 1e-12
    assert proof.folded == 0
    assert "other sizes of input" in proof.kept["a -> b"]


STEADY = {
    "mean": lambda h: h.mean((2, 3)),
    "largest": lambda h: h.amax((2, 3)),
    "average pool": lambda h: nn.functional.avg_pool2d(h, 2).amax((2, 3)),
    "average of what is there": lambda h: nn.functional.avg_pool2d(h, 3, 1, 1, count_include_pad=False).amax(
        (2, 3)
    ),
    "pool": lambda h: nn.functional.adaptive_max_pool2d(nn.functional.max_pool2d(h, 3, 1, 1), 1).flatten(1),
    "resized": lambda h: nn.functional.interpolate(h, scale_factor=2).amax((2, 3)),
    "dropped, turned and scaled": lambda h: (
        3 * nn.functional.dropout(h, 0.5, False).permute(0, 2, 3, 1)[:, 0, 0]
    ),
}


@pytest.mark.parametrize("kind", STEADY)
def test_a_constant_of_every_size_is_folded(kind):
    net = wide(dead_with_bias(pooled(STEADY[kind], nn.Linear(4, 2))))
    small, proof = sc.compact(net, IMAGE)
    assert (proof.folded, proof.removed) == (1, {"a -> b": (1, 4)})
    assert error(net, small, IMAGE, torch.randn(2, 3, 9, 7, dtype=torch.float64)) < 1e-12


def test_a_sum_of_zeros_goes_all_the_same():
    net = pooled(*POOLS["sum"])
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, -0.7
    assert found(net, IMAGE) == ({"a -> b": [1]}, 0, {})


def test_an_even_parameter_is_steady_and_an_uneven_one_is_not():
    def positions(net, x):
        return net.b((net.a(x) + net.p[: x.shape[0]]).relu())

    for even in (True, False):
        net = After(positions, a=nn.Linear(3, 4), b=nn.Linear(4, 2), p=nn.Parameter(torch.ones(12, 4)))
        with torch.no_grad():
            net.a.bias[1], net.p[:, 1] = 1.0, 0.0
            net.p[10, 1] += not even
        assert found(net, ROWS, (net.a.weight, 1))[1] == even


def test_a_number_that_the_forward_takes_from_the_size():
    net = After(lambda net, x: net.b(net.a(x).relu() * x.shape[1]), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    wide(net)
    dead_with_bias(net)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    small, proof = sc.compact(net, x)
    assert error(net, small, x, torch.randn(2, 8, 3, dtype=torch.float64)) < 1e-12
    assert proof.folded == 0


def test_a_constant_beside_one_number_of_the_input_stays():
    def op(net, x):
        return net.b(net.a(x).relu() + x.ne(9.0).sum().to(x))

    net = After(op, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    net.a.bias.data[1] = 1.0
    assert found(net, ROWS, (net.a.weight, 1))[1] == 0


def test_a_constant_is_observed_in_float64():
    net = mlp(3, 4, 2, activation=nn.Tanh)
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 0.3
    small, _ = sc.compact(net, ROWS.float())
    want = net[2].bias.double() + net[0].bias[1].double().tanh() * net[2].weight[:, 1].double()
    assert torch.equal(small[2].bias, want.float())


def test_constants_are_folded_only_where_their_units_go():
    def op(net, x):
        h = net.a(x)
        return net.b(h) / h.shape[-1] ** 0.5

    net = After(op, a=nn.Linear(3, 5), b=nn.Linear(5, 2))
    with torch.no_grad():
        net.a.weight[::2] = 0
    small, proof = sc.compact(net, ROWS.float())
    assert (proof.folded, proof.removed) == (0, {})
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), small.parameters(), strict=True))
