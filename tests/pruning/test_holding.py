"""Zeros stay zero whatever trains, and what is held trains as the smaller problem it is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils import prune as torch_prune
from torch.optim import SGD, Adam

import secateur as sc
from networks.toy import OPTIMIZERS, X, Y, hooks, loss_of, step, weights
from secateur.errors import MaskError


@pytest.fixture
def pruned(mlp, device):
    net = mlp().to(device)
    return net, sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))


# -- every optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeros_hold_and_the_rest_trains_as_under_torchs_masked_forward(mlp, make):
    ours, theirs = mlp(), mlp()
    masks = sc.prune(ours, sc.Magnitude(), sc.Uniform(0.75))
    for i in (0, 2):
        torch_prune.custom_from_mask(theirs[i], "weight", masks[f"{i}.weight"])
    start = weights(ours)
    optimizer, reference = make(ours.parameters()), make(theirs.parameters())
    with masks.held(optimizer):
        for _ in range(5):
            step(ours, optimizer)
            step(theirs, reference)
            masks.check()
    theirs(X)  # their effective weight is made anew in the forward
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(theirs)[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(weight, start[name])
    assert hooks(optimizer) == 0


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw", "lbfgs strong_wolfe"])
def test_without_holding_the_zeros_come_back(mlp, name):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    step(net, OPTIMIZERS[name](net.parameters()))
    with pytest.raises(MaskError, match="masked weights are not zero"):
        masks.check()


def test_momentum_from_before_the_pruning_does_not_leak(mlp):
    net = mlp()
    for make in (OPTIMIZERS["momentum"], OPTIMIZERS["adam"]):
        optimizer = make(net.parameters())
        for _ in range(3):
            step(net, optimizer)
        masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
        with masks.held(optimizer):
            for _ in range(3):
                step(net, optimizer)
                masks.check()


def test_held_on_each_device(pruned, device):
    net, masks = pruned
    optimizer = Adam(net.parameters(), lr=0.01)
    with masks.held(optimizer):
        for _ in range(3):
            net(torch.randn(4, 8, device=device)).square().sum().backward()
            optimizer.step()
    assert sc.sparsity(net) == 0.75


def test_layers_of_different_dtypes(linear):
    net = nn.Sequential(linear(torch.randn(6, 6)), linear(torch.randn(6, 6).double()))
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    with masks.held(optimizer):
        for _ in range(3):
            net[1](net[0](torch.randn(3, 6)).double()).sum().backward()
            optimizer.step()
    assert sc.sparsity(net) == 0.5


def test_two_optimizers_hold_a_layer_each(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    first, second = SGD(net[0].parameters(), lr=0.1), Adam(net[2].parameters())
    with masks.held(first), masks.held(second):
        for _ in range(3):
            loss_of(net).backward()
            first.step()
            second.step()
    assert sc.sparsity(net) == 0.5


def test_frozen_layers_and_masks_of_nothing(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    net[0].weight.requires_grad_(False)
    optimizer = SGD(net.parameters(), lr=0.1)
    frozen = net[0].weight.clone()
    with masks.held(optimizer):
        step(net, optimizer)
    assert torch.equal(net[0].weight, frozen)
    nothing = sc.Masks(net, {})
    with nothing.held(optimizer):
        step(net, optimizer)


# -- closures --------------------------------------------------------------------------------------


class Perturbing(torch.optim.Optimizer):
    """As sharpness-aware ones do: moves every weight before it asks the closure."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p += 0.5
        with torch.enable_grad():
            loss = closure()
        for p in self.param_groups[0]["params"]:
            p -= 0.5 + p.grad
        return loss


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("make", [Perturbing, OPTIMIZERS["lbfgs strong_wolfe"], OPTIMIZERS["momentum"]])
def test_a_closure_sees_masked_weights_and_the_optimizer_masked_gradients(mlp, make, by_keyword):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = make(net.parameters())
    calls = []

    def closure() -> Tensor:
        masks.check()
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        calls.append(loss.item())
        return loss

    with masks.held(optimizer):
        loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
        assert not net[0].weight.grad[~masks["0.weight"]].any()
    assert loss.item() == calls[0]


# -- AMP, accumulation, clipping ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "adam", "adam fused", "momentum fused"])
def test_grad_scaler_that_skips_a_step(mlp, name):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = OPTIMIZERS[name](net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    with masks.held(optimizer):
        for i in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            if i in (1, 4):  # an overflow, also where the mask is
                net[0].weight.grad.fill_(torch.inf)
            before = weights(net)
            scaler.step(optimizer)
            scaler.update()
            moved = any(not torch.equal(w, before[n]) for n, w in weights(net).items())
            assert moved == (i not in (1, 4))
            masks.check()
    assert scaler.get_scale() == 2.0


def test_gradient_accumulation(mlp):
    ours, theirs = mlp(), mlp()
    masks = sc.prune(ours, sc.Magnitude(), sc.Uniform(0.75))
    masks.apply(theirs)
    optimizer, whole = SGD(ours.parameters(), lr=0.1), SGD(theirs.parameters(), lr=0.1)
    with masks.held(optimizer), masks.bind(theirs).held(whole):
        for _ in range(3):
            optimizer.zero_grad()
            for part in range(4):
                x, y = X[part::4], Y[part::4]
                (nn.functional.mse_loss(ours(x), y) / 4).backward()
            optimizer.step()
            step(theirs, whole)
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(theirs)[name])


def test_clipping_with_mask_grads(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = SGD(net.parameters(), lr=1.0)
    before = weights(net)
    with masks.held(optimizer):
        loss_of(net).backward()
        alive = math.sqrt(
            sum(
                float((p.grad * masks.get(n, torch.ones(1))).square().sum())
                for n, p in net.named_parameters()
            )
        )
        masks.mask_grads()
        norm = clip_grad_norm_(net.parameters(), 0.01)
        optimizer.step()
    assert float(norm) == pytest.approx(alive)
    moved = math.sqrt(sum(float((w - before[n]).square().sum()) for n, w in weights(net).items()))
    assert moved == pytest.approx(0.01, rel=1e-3)  # all of it went to weights that live


# -- compile, deepcopy, resume ------------------------------------------------------------------------


def test_compiled_models_train_alike(mlp):
    plain, net = mlp(), mlp()
    compiled = torch.compile(net, backend="eager")
    for model in (plain, compiled):
        masks = sc.prune(model, sc.Magnitude(), sc.Uniform(0.75))
        assert list(masks) == ["0.weight", "2.weight"]
        optimizer = Adam(model.parameters(), lr=0.01)
        with masks.held(optimizer):
            for _ in range(3):
                step(model, optimizer)
    assert all(torch.equal(w, weights(net)[n]) for n, w in weights(plain).items())


def test_deepcopy_inside_the_block(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    optimizer = Adam(net.parameters(), lr=0.01)
    with masks.held(optimizer):
        step(net, optimizer)
        twin = copy.deepcopy(net)
        step(net, optimizer)
    masks.bind(twin).check()
    assert list(twin.state_dict()) == list(net.state_dict())
    step(twin, free := SGD(twin.parameters(), lr=0.1))
    assert hooks(free) == 0
    assert sc.sparsity(twin) < 0.3  # the copy is not held


@pytest.mark.parametrize("name", ["momentum", "adam", "adam fused", "lbfgs strong_wolfe"])
def test_resumed_equals_uninterrupted(mlp, name, tmp_path):
    def start():
        net = mlp()
        return net, sc.prune(net, sc.Magnitude(), sc.Uniform(0.75)), OPTIMIZERS[name](net.parameters())

    net, masks, optimizer = start()
    with masks.held(optimizer):
        for _ in range(6):
            step(net, optimizer)
    first, masks, optimizer = start()
    with masks.held(optimizer):
        for _ in range(3):
            step(first, optimizer)
    masks.save(tmp_path / "masks")
    torch.save({"net": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "rest")

    fresh = mlp()
    rest = torch.load(tmp_path / "rest", weights_only=True)
    fresh.load_state_dict(rest["net"])
    optimizer = OPTIMIZERS[name](fresh.parameters())
    optimizer.load_state_dict(rest["optimizer"])
    with sc.Masks.load(tmp_path / "masks", fresh).held(optimizer):
        for _ in range(3):
            step(fresh, optimizer)
    assert all(torch.equal(w, weights(net)[n]) for n, w in weights(fresh).items())
