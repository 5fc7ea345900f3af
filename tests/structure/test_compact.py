"""``compact``: a really smaller network, equal to the masked one, with all that hangs on it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from networks.attention import FusedHeads, GroupedQuery
from networks.comparing import error, unchanged, wide
from networks.drawn import IMAGES, ROWS, SEQUENCE
from networks.parts import After
from networks.plain import Concat, mlp
from networks.pruned import halved, kill
from networks.residual import Residual
from secateur.errors import ModelError
from secateur.graph.draws import randomise


@pytest.mark.parametrize(
    ("kind", "x", "left"),
    [
        (lambda: mlp(3, 6, 4, 2), ROWS, 12 + 8 + 6),
        (Residual, IMAGES, 84 + 6 + 81 + 6 + 81 + 6 + 16),
        (Concat, ROWS, 8 + 12 + 12),
        (FusedHeads, SEQUENCE, 96 + 35),
        (GroupedQuery, SEQUENCE, 84 + 28 + 28 + 84),
    ],
    ids=["mlp", "residual", "concat", "fused heads", "grouped query"],
)
def test_exactly_the_masked_units_go(kind, x, left):
    net = kind()
    structure, _ = halved(net, x)
    small, proof = sc.compact(net, x)
    assert proof.removed == {n: (round(len(g) / 2), len(g)) for n, g in structure.groups.items()}
    assert proof.parameters == (sum(p.numel() for p in net.parameters()), left)
    assert error(net, small, x, torch.randn_like(x)) < 1e-12


def test_the_surviving_weights_are_the_same_numbers():
    net = wide(mlp(3, 6, 2))
    kill(net, 0, [1, 4])
    small, _ = sc.compact(net, ROWS)
    kept = [0, 2, 3, 5]
    assert torch.equal(small[0].weight, net[0].weight[kept])
    assert torch.equal(small[0].bias, net[0].bias[kept])
    assert torch.equal(small[2].weight, net[2].weight[:, kept])
    assert torch.equal(small[2].bias, net[2].bias)


def test_compacting_twice_changes_nothing_more():
    net = mlp(3, 6, 4, 2)
    halved(net, ROWS)
    small, proof = sc.compact(net, ROWS)
    again, second = sc.compact(small, ROWS)
    assert second.removed == {}
    assert second.parameters == (proof.parameters[1], proof.parameters[1])
    assert unchanged(again, small.state_dict())


def test_nothing_to_remove():
    net = wide(mlp(3, 4, 2))
    small, proof = sc.compact(net, ROWS)
    assert small is not net
    assert unchanged(small, net.state_dict())
    assert (proof.removed, proof.kept, proof.folded) == ({}, {}, 0)


def test_a_network_without_a_group():
    net = wide(nn.Linear(3, 2))
    assert sc.compact(net, ROWS)[1].removed == {}


def test_the_model_inside_wrappers():
    net = mlp(3, 6, 2)
    halved(net, ROWS)
    small, proof = sc.compact(torch.optim.swa_utils.AveragedModel(net), ROWS)
    assert type(small) is nn.Sequential
    assert proof.removed == {"0 -> 2": (3, 6)}


# -- what is kept ----------------------------------------------------------------------------------------


def test_modes_settings_and_hooks_are_kept():
    net = wide(nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 2)))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2] = 0
    small, proof = sc.compact(net, ROWS)
    assert proof.removed == {"0 -> 3": (1, 6)}
    assert (
        [m.training for m in small.modules()]
        == [m.training for m in net.modules()]
        == [True, True, False, True, True]
    )
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True]
    assert len(small[0]._forward_hooks) == 1
    assert error(net.eval(), small.eval(), ROWS) < 1e-12


def test_shared_parameters_stay_shared():
    net = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False))
    net[2].weight = net[0].weight
    tokens = torch.arange(11)[None]
    halved(net, tokens)
    small, _ = sc.compact(net, tokens)
    assert small[2].weight is small[0].weight
    assert small[0].weight.shape == (11, 3)
    assert error(net, small, tokens) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype):
    net = mlp(3, 6, 2).to(dtype)
    x = ROWS.to(dtype)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, x)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert proof.dtype == "float64"
    assert proof.max_error < 1e-12


def test_gradients_of_the_given_model_are_left():
    net = wide(mlp(3, 6, 2))
    net(ROWS).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    kill(net, 0, [1])
    sc.compact(net, ROWS)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


def test_the_example_inputs_are_left():
    net, x = mlp(3, 6, 2), ROWS.clone()
    halved(net, x)
    sc.compact(net, x)
    assert torch.equal(x, ROWS)


def test_the_global_random_state_is_left():
    net = mlp(3, 6, 2)
    halved(net, ROWS)
    state = torch.random.get_rng_state()
    sc.compact(net, ROWS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_small_model_trains_and_saves():
    net = mlp(3, 6, 2)
    halved(net, ROWS)
    small, _ = sc.compact(net, ROWS)
    small(ROWS).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())
    other = mlp(3, 3, 2).double()
    other.load_state_dict(small.state_dict())
    assert error(small, other, ROWS) == 0


# -- masks -----------------------------------------------------------------------------------------------


def test_masks_are_rebound():
    net = wide(mlp(3, 6, 5, 2))
    structure = sc.trace(net, ROWS)
    single = sc.prune(net, sc.Magnitude(), sc.Uniform(0.4))
    both = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, masks=single)
    small, proof = sc.compact(net, ROWS, masks=both)
    assert proof.masks.model is small
    assert set(proof.masks) == set(both)
    assert all(mask.shape == small.get_parameter(name).shape for name, mask in proof.masks.items())
    zeros = sum(int((~m).sum()) for n, m in proof.masks.items() if n.endswith("weight"))
    assert zeros == sum(int((p == 0).sum()) for n, p in small.named_parameters() if n.endswith("weight"))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    with proof.masks.held(optimizer):
        small(ROWS).square().mean().backward()
        optimizer.step()
    proof.masks.check()


def test_notes_of_masks_are_kept():
    net = wide(mlp(3, 6, 2))
    _, masks = halved(net, ROWS)
    assert sc.compact(net, ROWS, masks=masks)[1].masks.notes == masks.notes


def test_keywords_and_dictionaries_of_outputs():
    net = After(
        lambda net, x, scale: {"y": net.b(net.a(x).relu() * scale), "n": 3},
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 2),
    )
    scale = torch.rand(6, 1, dtype=torch.float64)
    structure = sc.trace(wide(net), ROWS, kwargs={"scale": scale})
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, {"x": ROWS, "scale": scale})
    assert proof.removed == {"a -> b": (3, 6)}
    assert error(net, small, (ROWS, scale * 3)) < 1e-12


def test_randomised_weights_are_proved_too():
    """Here the weights as they are would hide an error: the layer after the group is all zero."""
    net = wide(mlp(3, 6, 4, 2))
    halved(net, ROWS)
    small, proof = sc.compact(net, ROWS)
    assert proof.max_error_randomised < 1e-12
    big, little = copy.deepcopy(net), copy.deepcopy(small)
    randomise(big)
    little.load_state_dict(sc.compact(big, ROWS)[0].state_dict())
    assert error(big, little, ROWS) < 1e-9


# -- found while these tests were written --------------------------------------------------------------------


def test_a_constant_in_float32_is_folded():
    net = mlp(3, 6, 2, activation=nn.Tanh)
    with torch.no_grad():
        net[0].weight[1] = 0
    small, proof = sc.compact(net, ROWS.float())
    assert proof.folded == 1
    assert error(net, small, ROWS.float()) < 1e-6


def test_rebound_masks_hold_where_a_constant_is_folded():
    net = wide(mlp(3, 6, 2))
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 1.0
        net[2].bias[0] = 0
    masks = sc.Masks(net, {"2.bias": torch.tensor([False, True])})
    sc.compact(net, ROWS, masks=masks)[1].masks.check()


def test_a_structure_of_another_model_is_one_clear_error():
    first, second = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ModelError, match="traced from another model"):
        sc.compact(second, torch.zeros(1, 3), structure=sc.trace(first, torch.zeros(1, 3)))


def test_a_structure_of_a_copy_is_named_as_such():
    net = mlp(3, 6, 2)
    with pytest.raises(ModelError, match="or one on the meta device, is another"):
        sc.compact(net, ROWS.float(), structure=sc.trace(copy.deepcopy(net), ROWS.float()))
    with pytest.raises(ModelError, match="structure= is a Tensor; pass what trace"):
        sc.compact(net, ROWS.float(), structure=ROWS)


def test_the_proof_counts_the_units_of_every_group():
    net = wide(mlp(3, 6, 4, 2))
    kill(net, 0, [1])
    assert repr(sc.compact(net, ROWS)[1]).startswith("1 of 10 units removed, in 1 of 2 groups: ")
