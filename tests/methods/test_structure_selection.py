"""Structure selection: the step, the scaled network, and what it folds to."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.comparing import apart, same, snapshot
from networks.drawn import randn
from networks.plain import mlp
from networks.selected import NETS, assign, quadratic, selection
from secateur.measure.macs import count_macs
from secateur.methods.scaling import proximal_step
from secateur.methods.structure_selection import StructureSelection

# -- the step ----------------------------------------------------------------------------------------


def test_two_steps_by_hand():
    """lr 0.1, penalty 0.5: the threshold is 0.05."""
    factor, velocity = torch.tensor([1.0, 0.05, -0.02], dtype=torch.float64), torch.zeros(3).double()
    proximal_step(factor, velocity, torch.tensor([1.0, 0.0, 0.0]).double(), 0.1, 0.5, 0.9)
    assert velocity.tolist() == pytest.approx([-0.15, -0.05, 0.02])
    assert factor.tolist() == pytest.approx([0.715, -0.045, 0.018])
    proximal_step(factor, velocity, torch.tensor([0.0, 1.0, 0.0]).double(), 0.1, 0.5, 0.9)
    assert velocity.tolist() == pytest.approx([-0.185, -0.095, 0.0], abs=1e-12)
    assert factor.tolist() == pytest.approx([0.4985, -0.1805, 0.0], abs=1e-12)


def test_two_steps_of_a_network_by_hand():
    """y = 2 f0 x - 3 f1 x, loss y: the gradients are 2 x and -3 x whatever the factors are."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[1].weight.copy_(torch.tensor([[2.0, -3.0]]))
    x = torch.ones(1, 1).double()
    chosen = StructureSelection(model, x, penalty=0.5, lr=None, momentum=0.9)
    assert list(chosen.factors) == ["0 -> 1"]
    assert chosen.factors["0 -> 1"].tolist() == [1, 1]
    model.requires_grad_(False)[1].weight.requires_grad_(True)
    optimizer = torch.optim.SGD([{"params": [model[1].weight], "lr": 0.1}])
    expected, velocity = torch.ones(2).double(), torch.zeros(2).double()
    with chosen.trained(optimizer) as network:
        assert network is chosen.network
        for rate in (0.1, 0.01):  # a schedule: lr=None follows it
            optimizer.param_groups[0]["lr"] = rate
            gradient = model[1].weight[0].detach().clone()
            chosen.network(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            proximal_step(expected, velocity, gradient, rate, 0.5, 0.9)
            assert torch.allclose(chosen.factors["0 -> 1"], expected, rtol=0, atol=1e-12)
    assert expected[0] < 0.7 < 1.2 < expected[1]


def test_a_rate_of_its_own():
    model, x, chosen = selection("mlp", lr=0.5, penalty=0.2, momentum=0.0)
    quadratic(chosen.network, x).backward()
    gradients = {n: f.grad.clone() for n, f in chosen.network.factors.items()}
    for factor in chosen.network.factors.values():
        factor.grad = None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with chosen.trained(optimizer):
        quadratic(chosen.network, x).backward()
        optimizer.step()
    for name, factor in chosen.factors.items():
        assert torch.allclose(factor, F.softshrink(1 - 0.5 * gradients[name], 0.1))
    assert all(f.grad is None for f in chosen.network.factors.values())


def test_factors_follow_the_last_of_several_optimizers():
    ends = []
    for several in (False, True):
        model, x, chosen = selection("mlp", lr=0.5, penalty=0.2)
        parts = (model[:2], model[2:]) if several else (model,)
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
        with chosen.trained(optimizers):
            quadratic(chosen.network, x).backward()
            for optimizer in optimizers:
                optimizer.step()
        ends.append(snapshot(chosen.network))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_gradients_add_up_between_steps():
    ends = []
    for parts in (1, 2):
        model, x, chosen = selection("mlp")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with chosen.trained(optimizer):
            for part in x.chunk(parts):
                (quadratic(chosen.network, part) / parts).backward()
            optimizer.step()
        ends.append(snapshot(chosen.network))
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-12) for n in ends[0])
    assert not all((t == 1).all() for n, t in ends[0].items() if n.startswith("factor"))


# -- the network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_factors_of_one_change_nothing(name):
    model, x, chosen = selection(name)
    assert apart(model, chosen.network, x) == 0
    assert list(map(id, chosen.network.parameters())) == list(map(id, model.parameters()))


@pytest.mark.parametrize("name", NETS)
def test_the_small_network_is_the_scaled_one(name):
    model, x, chosen = selection(name)
    before = snapshot(model)
    assign(chosen, None)
    small, selected = chosen.fold()
    proof = selected.proof
    assert apart(chosen.network, small, x) < 1e-12
    assert apart(chosen.network, small, randn(*x.shape, seed=5)) < 1e-12
    assert type(small) is type(model)
    assert proof.parameters[1] < proof.parameters[0] == sum(p.numel() for p in model.parameters())
    assert selected.removed_error == 0
    assert selected.max_error < 1e-12
    for group, (kept, of) in selected.units.items():
        assert proof.removed[group] == (of - kept, of)
    assert same(before, snapshot(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["post", "pre", "encoder", "attention"])
def test_blocks_and_units_of_the_families(name):
    _, _, chosen = selection(name)
    wanted = {
        "post": ["0, 3.b +1 -> 3.a, 4.a +1", "3.a -> 3.b", "4.a -> 4.b", "x + 3.bn_b", "x + 4.bn_b"],
        "pre": ["0, 3.b +1 -> 3.a, 4.a +1", "3.a -> 3.b", "4.a -> 4.b", "x + 3.b", "x + 4.b"],
        "encoder": ["0.qkv -> 0.out", "0.up -> 0.down", "x + 0.out", "x + 0.down"],
        "attention": [
            "1.self_attn.in_proj_weight -> 1.self_attn.out_proj",
            "1.linear1 -> 1.linear2",
            "x + 1.self_attn",
            "x + 1.linear2",
        ],
    }[name]
    assert list(chosen.factors) == wanted
    assert not chosen.skipped


def test_negative_and_zero_factors_fold_into_columns():
    model, x, chosen = selection("mlp")
    assign(chosen, {"0 -> 2": [2.0, -0.5, 0, 1, 1e-5, -1e-3, 3]})
    small, selected = chosen.fold()
    kept = [0, 1, 3, 5, 6]
    scale = torch.tensor([2.0, -0.5, 1, -1e-3, 3]).double()
    assert torch.equal(small[0].weight, model[0].weight[kept])
    assert torch.equal(small[2].weight, model[2].weight[:, kept] * scale)
    assert torch.equal(small[2].bias, model[2].bias)
    assert selected.units == {"0 -> 2": (5, 7), "2 -> 4": (8, 8)}
    assert 0 < selected.removed_error < 1e-3
    assert chosen.fold(threshold=0)[1].units["0 -> 2"] == (6, 7)
    assert chosen.fold(threshold=0.1)[1].units["0 -> 2"] == (4, 7)
    assert apart(chosen.network, chosen.fold(threshold=0)[0], x) < 1e-12


def test_a_channel_that_is_read_in_several_columns():
    _, x, chosen = selection("plain")
    names = list(chosen.factors)
    assert [len(f) for f in chosen.factors.values()] == [5, 7, 9]
    assign(chosen, {names[1]: [0, 2, 1, 1, 1, 1, 1]})
    small, _ = chosen.fold()
    assert small[5].in_features == 24
    assert torch.equal(small[5].weight[:, :4], 2 * chosen.network.model[5].weight[:, 4:8])
    assert apart(chosen.network, small, x) < 1e-12


@pytest.mark.parametrize(("name", "block"), [("post", "x + 4.bn_b"), ("pre", "x + 4.b")])
def test_a_block_goes_whole(name, block):
    model, x, chosen = selection(name)
    assign(chosen, {block: 1e-6, "3.a -> 3.b": [1.0, 0, 0, 1, 1]})
    small, selected = chosen.fold()
    proof = selected.proof
    assert selected.blocks == (block,)
    assert selected.identities == ("4",)
    assert type(small[4]) is nn.Identity
    assert selected.units["4.a -> 4.b"] == (0, 7)
    assert selected.units["3.a -> 3.b"] == (3, 5)
    assert 0 < selected.removed_error < 1e-4
    assert apart(chosen.network, small, x) < 1e-4
    assert proof.parameters[0] == sum(p.numel() for p in model.parameters())
    assert proof.macs[0] == count_macs(model, x).dense
    assert proof.macs[1] == count_macs(small, x).dense
    lines = repr(selected).splitlines()
    assert "4.a -> 4.b: 0 of 7 units kept" in lines
    assert f"block removed: {block}" in lines
    assert "now an nn.Identity: 4" in lines


def test_a_branch_without_a_module_of_its_own_loses_its_units():
    _, x, chosen = selection("encoder")
    assign(chosen, {"x + 0.down": 0.0})
    small, selected = chosen.fold()
    assert selected.blocks == ("x + 0.down",)
    assert selected.identities == ()
    assert small[0].up.out_features == 1
    assert selected.units["0.up -> 0.down"] == (0, 20)
    assert apart(chosen.network, small, x) < 1e-12
    assign(chosen, {"x + 0.down": 0.0, "x + 0.out": 0.0})
    small, selected = chosen.fold()
    assert selected.identities == ("0",)
    assert apart(chosen.network, small, x) < 1e-12


def test_a_group_of_zeros_keeps_its_largest():
    model, _, chosen = selection("mlp")
    assign(chosen, {"0 -> 2": [1e-6, 0, -5e-6, 0, 0, 0, 0], "2 -> 4": 0.0})
    small, selected = chosen.fold()
    assert selected.units == {"0 -> 2": (1, 7), "2 -> 4": (1, 8)}
    assert len(selected.notes) == 2
    assert "0 -> 2: no factor is 0.0001 or more; the largest one's unit stays" in selected.notes
    assert "note: 0 -> 2" in repr(selected)
    assert (small[0].out_features, small[2].out_features) == (1, 1)
    assert model[0].out_features == 7


def test_units_and_blocks_alone():
    assert all("x +" in name for name in selection("post", units=False)[2].factors)
    assert not any("x +" in name for name in selection("post", blocks=False)[2].factors)
    _, _, chosen = selection("mlp", include="0.weight")
    assert list(chosen.factors) == ["0 -> 2"]
    assert list(selection("mlp", exclude="0.weight")[2].factors) == ["2 -> 4"]


def test_in_float32():
    model = mlp(5, 7, 8, 3, seed=0)
    x = randn(6, 5).float()
    chosen = StructureSelection(model, x)
    assign(chosen, None)
    small, selected = chosen.fold()
    proof = selected.proof
    assert apart(chosen.network, small, x) < 1e-6
    assert proof.dtype == "float64"
    assert selected.max_error < 1e-12


def test_keyword_arguments():
    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x, *, factor):
            return self.b(self.a(x).relu() * factor)

    torch.manual_seed(0)
    model, x, factor = Scaling().double(), randn(4, 5), randn(6)
    chosen = StructureSelection(model, x, kwargs={"factor": randn(4, 1)})
    assign(chosen, {"a -> b": [1.0, 0, 2, -1, 0, 1]})
    small, selected = chosen.fold()
    proof = selected.proof
    assert proof.removed == {"a -> b": (2, 6)}
    factor = randn(4, 1, seed=9)
    assert torch.allclose(small(x, factor=factor), chosen.network(x, factor=factor), atol=1e-12)
