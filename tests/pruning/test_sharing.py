"""Shared weights: clusters worked out by hand, and equal whatever an optimizer does."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from networks.plain import mlp
from secateur.deploy.packing import pack, unpack
from secateur.errors import BudgetError, MaskError, NonFiniteError, TargetError
from secateur.pruning.sharing import Sharing, clustered, share_weights

three_layers = partial(mlp, 20, 30, 10, 3, seed=0)


def layer(rows: list[list[float]], bias: bool = False) -> Any:
    made = nn.Linear(len(rows[0]), len(rows), bias=bias)
    made.weight.data = torch.tensor(rows)
    return nn.Sequential(made)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for seed in range(steps):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.arange(16) % 3).backward()
        optimizer.step()


# -- clusters ----------------------------------------------------------------------------------------


def test_clusters_by_hand():
    codebook, members = clustered(np.array([1.0, 10.0, 2.0, 3.0, 12.0]), 2)  # from 1 and 12: parted at 6.5
    assert codebook.tolist() == [2, 11]
    assert members.tolist() == [0, 1, 0, 0, 1]


def test_few_values_are_their_own_codebook():
    codebook, members = clustered(np.array([3.0, -1.0, 3.0]), 4)
    assert codebook.tolist() == [-1, 3]
    assert members.tolist() == [1, 0, 1]


def test_an_empty_cluster_halves_the_widest():
    values = np.array([-5.0, -4.0, 4.0, 6.0, 10.0])  # of -5, 0, 5, 10 the second catches nothing
    codebook, members = clustered(values, 4)
    assert members.tolist() == [0, 0, 1, 2, 3]
    assert codebook.tolist() == [-4.5, 4, 6, 10]


def test_no_cluster_is_zero():
    codebook, members = clustered(np.array([-3.0, -1.0, 1.0, 3.0, 30.0]), 2)
    assert codebook.tolist() == [-1, 30]  # the mean is 0; the weight nearest to it stands in
    assert members.tolist() == [0, 0, 0, 0, 1]


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(2, 256), st.sampled_from([0.0, 0.5, 3.0]))
@settings(max_examples=100, deadline=None)
def test_every_value_is_with_its_nearest_and_none_is_unused(seed, count, number, hole):
    random = np.random.default_rng(seed)
    values = random.standard_normal(count)
    values += hole * np.sign(values)  # as pruning by magnitude leaves them
    codebook, members = clustered(values, number)
    assert len(codebook) == min(number, len(np.unique(values)))
    assert (np.diff(codebook) > 0).all()
    assert np.array_equal(np.unique(members), np.arange(len(codebook)))
    distance = np.abs(values[:, None] - codebook)
    assert np.allclose(distance[np.arange(count), members], distance.min(1), atol=1e-12)
    means = np.bincount(members, values) / np.bincount(members)
    assert np.allclose(means, codebook, atol=1e-9)


def test_a_million_weights_take_well_under_a_second():
    values = np.random.default_rng(0).standard_normal(1_000_000)
    start = time.process_time()
    clustered(values, 16)
    assert time.process_time() - start < 1


# -- sharing -----------------------------------------------------------------------------------------


def test_sharing_leaves_zeros_and_few_values():
    net = layer([[0.0, 1.0, 2.0, 3.0], [10.0, 12.0, 0.0, -0.0]])
    sharing = share_weights(net, values=2)
    assert net[0].weight.tolist() == [[0, 2, 2, 2], [11, 11, 0, 0]]
    assert sharing.clusters["0.weight"].tolist() == [[-1, 0, 0, 0], [1, 1, -1, -1]]
    assert sharing.codebooks["0.weight"].tolist() == [2, 11]
    assert repr(sharing).splitlines()[1].split() == ["0.weight", "2x4", "8", "5", "2"]


def test_targets_are_chosen_as_in_prune_and_biases_are_none():
    net = three_layers()
    before = copy.deepcopy(net.state_dict())
    sharing = share_weights(net, values=4, exclude="4")
    assert list(sharing.clusters) == ["0.weight", "2.weight"]
    after = net.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in ("0.bias", "2.bias", "4.weight", "4.bias"))
    assert len(after["0.weight"].unique()) == len(after["2.weight"].unique()) == 4


def test_a_tensor_with_no_weight_left_is_passed_over():
    net = three_layers()
    net[2].weight.data.zero_()
    assert list(share_weights(net).clusters) == ["0.weight", "4.weight"]


def test_what_cannot_be_shared_is_refused_and_changes_nothing():
    net = three_layers()
    masks = sc.prune(net, sc.Magnitude(), sc.Global(0.5))
    net[0].weight.data += 1
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MaskError, match=r"0.weight: \d+ masked weights are not zero"):
        share_weights(net, masks)
    for values in (1, 257, 16.0, True):
        with pytest.raises(BudgetError, match=rf"values is {values}; .* from 2 to 256"):
            share_weights(net, values=values)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="include pattern '7' matches nothing"):
        share_weights(net, include="7")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    net[2].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"2.weight holds a NaN"):
        share_weights(net)


# -- held --------------------------------------------------------------------------------------------


def test_a_step_of_sgd_moves_each_value_by_the_sum_over_its_weights():
    net = layer([[0.0, 1.0, 2.0, 3.0], [10.0, 12.0, 0.0, 0.0]])
    sharing = share_weights(net, values=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sharing.held(optimizer):
        net[0].weight.grad = torch.tensor([[9.0, 1.0, 2.0, 4.0], [-3.0, 1.0, 9.0, 9.0]])
        optimizer.step()
    assert net[0].weight.grad.tolist() == [[0, 7, 7, 7], [-2, -2, 0, 0]]
    assert net[0].weight.tolist() == [[0, -1.5, -1.5, -1.5], [12, 12, 0, 0]]


def test_the_steps_are_those_of_a_codebook_as_parameter():
    """The same losses and values as with the codebook itself as what SGD trains."""
    net = three_layers()
    sharing = share_weights(net, values=5)
    codebooks = {n: nn.Parameter(c.clone()) for n, c in sharing.codebooks.items()}
    rest = {n: nn.Parameter(p.detach().clone()) for n, p in net.named_parameters() if n not in codebooks}
    other = torch.optim.SGD([*codebooks.values(), *rest.values()], lr=1e-3, momentum=0.9)
    for seed in range(5):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(seed))
        weights = {n: c[sharing.clusters[n].long()] for n, c in codebooks.items()}
        other.zero_grad()
        outputs = torch.func.functional_call(net, weights | rest, x)
        nn.functional.cross_entropy(outputs, torch.arange(16) % 3).backward()
        other.step()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    with sharing.held(optimizer):
        train(net, optimizer)
    for name, codebook in sharing.codebooks.items():
        torch.testing.assert_close(codebook, codebooks[name].detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True, fused=True),
        lambda p: torch.optim.Rprop(p, 0.01),
    ],
)
def test_clusters_hold_and_move_under_any_optimizer(make, dtype):
    net = three_layers()
    masks = sc.prune(net, sc.Magnitude(), sc.Global(0.7))
    optimizer = make(net.to(dtype).parameters())
    for parameter in net.parameters():  # momentum of weights that are to stay zero
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    masks.apply()
    sharing = share_weights(net, masks, values=6)
    first = sharing.codebooks
    with masks.held(optimizer), sharing.held(optimizer):
        for seed in range(4):
            x = torch.randn(16, 20, generator=torch.Generator().manual_seed(seed)).to(dtype)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            for name, parameter in net.named_parameters():
                if name in sharing.clusters:
                    for number in range(6):
                        assert len(parameter[sharing.clusters[name] == number].unique()) <= 1
                    assert not parameter[sharing.clusters[name] < 0].any()
    assert any(not torch.equal(first[name], now) for name, now in sharing.codebooks.items())


def test_a_closure_sees_its_gradients_summed():
    nets = [three_layers(), three_layers()]
    for index, net in enumerate(nets):
        sharing = share_weights(net, values=4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = net(torch.ones(2, 20)).square().sum()
            loss.backward()
            return loss

        with sharing.held(optimizer):
            if index:
                optimizer.step(closure)
                optimizer.step(closure=closure)
            else:
                for _ in range(2):
                    closure()
                    optimizer.step()
    states = [net.state_dict().values() for net in nets]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_what_breaks_the_sharing_is_named():
    net = three_layers()
    sharing = share_weights(net, values=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        pytest.raises(MaskError, match=r"0.weight: weights that share a value differ"),
        sharing.held(optimizer),
    ):
        net[0].weight.data[0, 0] += 1
    sharing.apply().check()
    with pytest.raises(NonFiniteError, match=r"2.weight holds a NaN"), sharing.held(optimizer):
        net[2].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        sharing.apply()


def test_an_error_inside_the_block_is_not_masked_and_the_hooks_go():
    net = three_layers()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sharing = share_weights(net, values=4)

    def fail() -> None:
        with sharing.held(optimizer):
            net[0].weight.data[0, 0] += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    train(net, optimizer, 1)
    assert len(net[0].weight.unique()) > 4


def test_optimizers_that_cannot_hold():
    net = three_layers()
    sharing = share_weights(net)
    with (
        pytest.raises(MaskError, match="updates none of the shared weights; make it from Sequential"),
        sharing.held(torch.optim.SGD(three_layers().parameters(), lr=0.1)),
    ):
        pass
    with (
        pytest.raises(BudgetError, match="LBFGS compares"),
        sharing.held(torch.optim.LBFGS(net.parameters())),
    ):
        pass


def test_a_copy_is_made_equal_too():
    net = three_layers()
    sharing = share_weights(net, values=4)
    ema = torch.optim.swa_utils.AveragedModel(net)
    ema.module[0].weight.data += 1e-3 * torch.randn(30, 20)
    sharing.apply(ema)
    assert len(ema.module[0].weight.unique()) == 4
    with pytest.raises(MaskError, match=r"Linear has no parameter '0.weight'"):
        sharing.apply(nn.Linear(2, 3))
    with pytest.raises(
        MaskError, match=r"0.weight: the sharing has shape \(30, 20\), the parameter \(3, 2\)"
    ):
        Sharing(nn.Sequential(nn.Linear(2, 3)), sharing.clusters)


def test_sharing_follows_into_the_smaller_network():
    net = three_layers()
    x = torch.randn(6, 20)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    sharing = share_weights(net, values=4)
    small, proof = sc.compact(net, x, masks=sharing)
    followed = proof.masks
    assert followed.model is small
    assert {name: tuple(c.shape) for name, c in followed.clusters.items()} == {
        "0.weight": (15, 20),
        "2.weight": (5, 15),
        "4.weight": (3, 5),
    }
    followed.check()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    with followed.held(optimizer):
        train(small, optimizer)


def test_a_shared_network_packs_without_loss_as_a_codebook(tmp_path):
    net = nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    masks = sc.prune(net, sc.Magnitude(), sc.Global(0.9))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    with share_weights(net, masks).held(optimizer):
        net(torch.randn(8, 300)).square().sum().backward()
        optimizer.step()
    packed = pack(net, tmp_path / "x")
    assert "16 values in 4 bits" in packed.tensors[0].encoding
    assert packed.ratio > 25
    fresh = unpack(nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)), tmp_path / "x")
    states = net.state_dict().values(), fresh.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_several_optimizers_train_the_values_together():
    ends = []
    for several in (False, True):
        net = three_layers()
        sharing = share_weights(net, values=4)
        parts = (net[:2], net[2:]) if several else (net,)
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in parts]
        with sharing.held(optimizers):
            for seed in range(3):
                x = torch.randn(16, 20, generator=torch.Generator().manual_seed(seed))
                net.zero_grad()
                nn.functional.cross_entropy(net(x), torch.arange(16) % 3).backward()
                for optimizer in optimizers:
                    optimizer.step()
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_complex_weights_share_no_values():
    layer = nn.Linear(6, 12, dtype=torch.cfloat)
    before = layer.weight.clone()
    with pytest.raises(TargetError, match="its weights are complex, and shared values are real; exclude it"):
        sc.share_weights(layer, values=4)
    assert torch.equal(layer.weight, before)
