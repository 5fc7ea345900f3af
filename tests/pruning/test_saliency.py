import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import CriterionError


@given(st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_what_flows_into_a_neuron_flows_out_of_it(seed):
    """The conservation law of the paper: the scores into a hidden neuron sum to those out of it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    scores = sc.SynFlow()(sc.find_targets(net), data=[torch.randn(2, 4)])
    torch.testing.assert_close(scores["0.weight"].sum(1), scores["2.weight"].sum(0))


def test_the_flow_does_not_depend_on_the_data_and_the_network_stays():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    targets = sc.find_targets(net)
    one, other = (sc.SynFlow()(targets, data=[torch.randn(n, 2, 6, 6)]) for n in (1, 5))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training


def test_in_many_steps_no_layer_is_cut_off():
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(20, 20, bias=False), nn.ReLU())]
    net, x = nn.Sequential(*layers, nn.Linear(20, 2, bias=False)), torch.randn(2, 20)
    masks = list(sc.gradually(net, sc.SynFlow(), sc.Global(0.95), sc.Iterative(50), data=[x]))[-1]
    assert masks.sparsity == pytest.approx(0.95, abs=1e-3)
    assert all(row["kept"] > 0 for row in masks.layers())
    assert net(x).abs().sum() > 0


def test_synflow_says_what_it_needs():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(CriterionError, match="pass one batch of any"):
        sc.SynFlow()(sc.find_targets(net))
    with pytest.raises(CriterionError, match="SynFlow"):
        sc.SynFlow()(sc.find_targets(net), data=[])


def test_movement_is_minus_the_sum_of_weight_times_gradient():
    layer, movement = nn.Linear(2, 1, bias=False), sc.Movement()
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    gradients = torch.tensor([[0.2, -0.4]])
    with movement.watching(optimizer, layer):
        for _ in range(2):
            optimizer.zero_grad()
            (layer.weight * gradients).sum().backward()
            optimizer.step()
    # The weights are (1, 2), then (0.9, 2.2).
    expected = -torch.tensor([[1.0 * 0.2 + 0.9 * 0.2, 2.0 * -0.4 + 2.2 * -0.4]])
    torch.testing.assert_close(movement(sc.find_targets(layer))["weight"], expected)
    masks = sc.prune(layer, movement, sc.Uniform(0.5))
    assert masks["weight"].tolist() == [[False, True]]


def test_movement_prunes_during_the_training_that_it_watches():
    torch.manual_seed(0)
    net, movement = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), sc.Movement()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()

    with movement.watching(optimizer, net):
        train(5)
        with sc.during(optimizer, net, movement, sc.Global(0.8), sc.Cubic(steps=4), every=5):
            train(40)
    assert sc.sparsity(net) == pytest.approx(0.8, abs=0.01)


def test_movement_that_watched_nothing_says_so():
    layer = nn.Linear(2, 1)
    with pytest.raises(CriterionError, match="has not watched its training"):
        sc.prune(layer, sc.Movement(), sc.Uniform(0.5))
    other = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    with pytest.raises(CriterionError, match="trains no target"), sc.Movement().watching(other, layer):
        pass


def test_snip_is_taylor_before_training():
    """|w x gradient|, of one network of three weights by hand."""
    net = nn.Linear(3, 1, bias=False)
    net.weight.data = torch.tensor([[1.0, -2.0, 0.5]])
    x, y = torch.tensor([[1.0, 1.0, 4.0]]), torch.tensor([[0.0]])  # the output is 1, the gradient 2 x
    scores = sc.Taylor()(sc.find_targets(net), data=[(x, y)], loss=nn.functional.mse_loss)
    assert scores["weight"](slice(None)).tolist() == [[2.0, 4.0, 4.0]]


def test_a_mask_among_the_buffers_is_no_number():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net.register_buffer("mask", torch.ones(3, 3).tril().bool())
    scores = sc.SynFlow()(sc.find_targets(net), data=[torch.randn(2, 3)])
    assert scores["0.weight"].shape == (3, 3)


def test_movement_leaves_out_the_steps_that_a_scaler_leaves_out():
    layer, movement = nn.Linear(2, 1, bias=False), sc.Movement()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    with movement.watching(optimizer, layer):
        layer.weight.grad = torch.full_like(layer.weight, torch.inf)
        optimizer.grad_scale, optimizer.found_inf = (
            torch.tensor(2.0),
            torch.tensor(1.0),
        )  # as a scaler marks it
        optimizer.step()
    assert movement.sums == {}


def test_a_recipe_does_not_know_movement(tmp_path):
    from secateur.experiments.choices import choices

    assert "syn_flow" in choices("criterion")
    assert "movement" not in choices("criterion")
