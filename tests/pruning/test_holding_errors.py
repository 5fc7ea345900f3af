"""What goes wrong under held masks is said, and never left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import SGD

import secateur as sc
from networks.toy import hooks, loss_of, step
from secateur.errors import MaskError, NonFiniteError


@pytest.fixture
def pruned(mlp, device):
    net = mlp().to(device)
    return net, sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))


def test_entering_zeroes_what_came_back(pruned):
    net, masks = pruned
    with torch.no_grad():
        net[0].weight += 1
    with masks.held(SGD(net.parameters(), lr=0.1)) as same:
        assert same is masks
        masks.check()


def test_leaving_asserts_the_zeros(mlp):
    net = mlp()
    dense = copy.deepcopy(net.state_dict())
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = SGD(net.parameters(), lr=0.1)
    with masks.held(optimizer):
        net.load_state_dict(dense)
        step(net, optimizer)  # a step makes it good again

    def overwriting() -> None:
        with masks.held(optimizer):
            step(net, optimizer)
            net.load_state_dict(dense)

    with pytest.raises(MaskError, match=r"^0\.weight: 96 masked weights are not zero; .*load_state_dict"):
        overwriting()
    assert hooks(optimizer) == 0


def test_an_exception_is_not_hidden_and_the_hooks_are_gone(pruned):
    net, masks = pruned
    optimizer = SGD(net.parameters(), lr=0.1)

    def raising() -> None:
        with masks.held(optimizer), torch.no_grad():
            net[0].weight.fill_(torch.nan)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        raising()
    assert hooks(optimizer) == 0


def test_nan_weights_on_entering(pruned):
    net, masks = pruned
    optimizer = SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^2\.weight holds a NaN"), masks.held(optimizer):
        pytest.fail("the block must not run")
    assert hooks(optimizer) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_training_that_makes_a_nan(mlp, bad):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = SGD(net.parameters(), lr=0.1)
    where = (~masks["2.weight"]).nonzero()[0].tolist()  # 0 x inf must not pass for a zero

    def training() -> None:
        with masks.held(optimizer):
            loss_of(net).backward()
            net[2].weight.grad[tuple(where)] = bad
            optimizer.step()

    with pytest.raises(NonFiniteError, match=r"^2\.weight: training made a NaN"):
        training()
    assert hooks(optimizer) == 0


def test_a_long_training_stops_soon_after_a_nan(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = SGD(net.parameters(), lr=torch.nan)
    steps = []

    def training() -> None:
        with masks.held(optimizer):
            for i in range(1000):
                step(net, optimizer)
                steps.append(i)

    with pytest.raises(NonFiniteError, match=r"weight: training made a NaN"):
        training()
    assert len(steps) < 100


def test_an_optimizer_of_another_model(mlp):
    masks = sc.prune(mlp(), sc.Magnitude(), sc.Uniform(0.5))
    with pytest.raises(MaskError, match=r"updates none of the masked parameters; make it from Sequential"):
        masks.held(SGD(mlp().parameters(), lr=0.1)).__enter__()


def test_nothing_is_added_to_the_model(pruned):
    net, masks = pruned
    names = list(net.state_dict())
    with masks.held(SGD(net.parameters(), lr=0.1)):
        assert list(net.state_dict()) == names
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
        assert not any(p._backward_hooks for p in net.parameters())
