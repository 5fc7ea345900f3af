"""Masking units and cutting them out: exact indices, ties, settings, and sizes of torch's own modules."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from networks.comparing import snapshot, unchanged
from networks.plain import Concat, mlp
from networks.residual import Residual
from secateur.copying import copied
from secateur.errors import ModelError
from secateur.structure.surgery import cut, kept_index, mask_units, removed_by, sliced

ROWS = torch.zeros(4, 3)


def doomed(structure, **units) -> dict[str, np.ndarray]:
    """A bool a unit by group; units by the place of the group."""
    found = {name: np.zeros(len(group), dtype=bool) for name, group in structure.groups.items()}
    for place, indices in units.items():
        found[list(found)[int(place[1:])]][indices] = True
    return found


def test_what_goes_from_each_tensor():
    structure = sc.trace(mlp(3, 5, 4, 2), ROWS)
    removed = removed_by(structure, doomed(structure, g0=[1, 3], g1=[2]))
    assert {place: gone.tolist() for place, gone in removed.items()} == {
        ("0.weight", 0): [1, 3], ("0.bias", 0): [1, 3], ("2.weight", 1): [1, 3],
        ("2.weight", 0): [2], ("2.bias", 0): [2], ("4.weight", 1): [2],
    }  # fmt: skip


def test_groups_that_share_a_tensor_add_up():
    structure = sc.trace(Concat(), ROWS)
    removed = removed_by(structure, doomed(structure, g0=[0, 2], g1=[1]))
    assert removed["c.weight", 1].tolist() == [0, 2, 5]


def test_nothing_goes():
    structure = sc.trace(Concat(), ROWS)
    assert removed_by(structure, doomed(structure)) == {}


def test_masking_zeroes_every_slice_and_nothing_else():
    net = mlp(3, 5, 2)
    before = snapshot(net)
    structure = sc.trace(net, ROWS)
    mask_units(net, structure, doomed(structure, g0=[1, 4]))
    kept = [0, 2, 3]
    for name, gone in (("0.weight", ([1, 4],)), ("0.bias", ([1, 4],)), ("2.weight", (slice(None), [1, 4]))):
        assert not net.state_dict()[name][gone].any()
    assert torch.equal(net[0].weight[kept], before["0.weight"][kept])
    assert torch.equal(net[2].weight[:, kept], before["2.weight"][:, kept])
    assert torch.equal(net[2].bias, before["2.bias"])


def test_masking_leaves_running_statistics():
    net = Residual()
    structure = sc.trace(net, torch.zeros(2, 3, 8, 8))
    mask_units(net, structure, doomed(structure, g0=[0], g1=[2]))
    assert net.bn.running_var.tolist() == [1] * 6
    assert net.bn.weight.tolist() == [0, 1, 1, 1, 1, 1]


def test_masking_twice_changes_nothing():
    net = mlp(3, 5, 2)
    structure = sc.trace(net, ROWS)
    mask_units(net, structure, doomed(structure, g0=[1]))
    once = snapshot(net)
    mask_units(net, structure, doomed(structure, g0=[1]))
    assert unchanged(net, once)


def test_kept_index():
    assert kept_index(5, np.array([0, 3])).tolist() == [1, 2, 4]
    assert kept_index(2, np.array([], dtype=int)).tolist() == [0, 1]


def test_slicing_along_several_dims():
    tensor = torch.arange(12).view(3, 4)
    removed = {("w", 0): np.array([1]), ("w", 1): np.array([0, 2]), ("v", 0): np.array([0])}
    assert sliced(tensor, "w", removed).tolist() == [[1, 3], [9, 11]]
    assert sliced(tensor, "u", removed) is tensor


def test_cutting_keeps_exactly_the_other_weights():
    net = mlp(3, 5, 2)
    before = snapshot(net)
    cut(
        net,
        {
            ("0.weight", 0): np.array([1, 4]),
            ("0.bias", 0): np.array([1, 4]),
            ("2.weight", 1): np.array([1, 4]),
        },
    )
    assert torch.equal(net[0].weight, before["0.weight"][[0, 2, 3]])
    assert torch.equal(net[0].bias, before["0.bias"][[0, 2, 3]])
    assert torch.equal(net[2].weight, before["2.weight"][:, [0, 2, 3]])
    assert (net[0].out_features, net[2].in_features, net[2].out_features) == (3, 3, 2)


def test_what_is_not_cut_stays_the_same_object():
    net = mlp(3, 5, 2)
    bias = net[2].bias
    cut(net, {("2.weight", 1): np.array([0])})
    assert net[2].bias is bias


def test_requires_grad_is_kept():
    net = mlp(3, 5, 2)
    net[0].weight.requires_grad_(False)
    cut(net, {("0.weight", 0): np.array([0]), ("0.bias", 0): np.array([0])})
    assert (net[0].weight.requires_grad, net[0].bias.requires_grad) == (False, True)


def test_ties_are_kept():
    net = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11, bias=False))
    net[1].weight = net[0].weight
    cut(net, {("0.weight", 1): np.array([2])})
    assert net[1].weight is net[0].weight
    assert net[0].weight.shape == (11, 3)
    assert (net[0].embedding_dim, net[1].in_features) == (3, 3)


def test_a_module_with_two_names_is_cut_once():
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": shared, "b": shared})
    cut(net, {("a.weight", 0): np.array([1])})
    assert net["a"].weight is net["b"].weight
    assert net["b"].weight.shape == (3, 4)


@pytest.mark.parametrize(
    ("module", "removed", "sizes"),
    [
        (nn.Conv2d(4, 6, 3), {("weight", 0): [1], ("bias", 0): [1], ("weight", 1): [0, 1]},
         {"in_channels": 2, "out_channels": 5, "groups": 1}),
        (nn.ConvTranspose2d(4, 6, 3), {("weight", 1): [1], ("bias", 0): [1], ("weight", 0): [0, 1]},
         {"in_channels": 2, "out_channels": 5, "groups": 1}),
        (nn.Conv2d(6, 6, 3, groups=6), {("weight", 0): [1, 2], ("bias", 0): [1, 2]},
         {"in_channels": 4, "out_channels": 4, "groups": 4}),
        (nn.Conv2d(6, 9, 3, groups=3), {("weight", 0): [3, 4, 5], ("bias", 0): [3, 4, 5]},
         {"in_channels": 4, "out_channels": 6, "groups": 2}),
        (nn.Conv2d(6, 9, 3, groups=3), {("weight", 0): [0, 3, 6], ("bias", 0): [0, 3, 6], ("weight", 1): [1]},
         {"in_channels": 3, "out_channels": 6, "groups": 3}),
        (nn.ConvTranspose2d(6, 9, 3, groups=3), {("weight", 0): [2, 3], ("bias", 0): [3, 4, 5]},
         {"in_channels": 4, "out_channels": 6, "groups": 2}),
        (nn.BatchNorm2d(6), {(n, 0): [5] for n in ("weight", "bias", "running_mean", "running_var")},
         {"num_features": 5}),
        (nn.GroupNorm(3, 6), {("weight", 0): [2, 3], ("bias", 0): [2, 3]},
         {"num_channels": 4, "num_groups": 2}),
        (nn.LayerNorm(6), {("weight", 0): [2], ("bias", 0): [2]}, {"normalized_shape": (5,)}),
        (nn.PReLU(6), {("weight", 0): [2]}, {"num_parameters": 5}),
        (nn.GRUCell(3, 2), {("weight_ih", 1): [0]}, {"input_size": 2, "hidden_size": 2}),
        (nn.Bilinear(3, 4, 5),
         {("weight", 0): [0], ("bias", 0): [0], ("weight", 1): [1], ("weight", 2): [1, 2]},
         {"out_features": 4, "in1_features": 2, "in2_features": 2}),
    ],
)  # fmt: skip
def test_sizes_of_torchs_modules_follow(module, removed, sizes):
    cut(module, {place: np.array(indices) for place, indices in removed.items()})
    assert {name: getattr(module, name) for name in sizes} == sizes


def test_a_cut_lstm_still_runs():
    net = nn.LSTM(3, 4, batch_first=True)
    rows = np.array([1, 5, 9, 13])
    places = {(n, 0): rows for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")}
    cut(net, {**places, ("weight_hh_l0", 1): np.array([1])})
    assert net.hidden_size == 3
    assert net(torch.zeros(2, 5, 3))[0].shape == (2, 5, 3)


def test_a_copy_shares_nothing():
    net = mlp(3, 5, 2)
    other = copied(net)
    assert unchanged(other, snapshot(net))
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in other.parameters()}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_that_keeps_a_result_can_be_copied():
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)))
    net(ROWS)
    assert torch.equal(copied(net)(ROWS), net(ROWS))


def test_what_cannot_be_copied_is_one_clear_error():
    net = mlp(3, 4, 2)
    net.lock = threading.Lock()
    with pytest.raises(ModelError, match="Sequential cannot be copied"):
        copied(net)
