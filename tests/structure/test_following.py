"""What follows a network into its smaller one: optimizers, schedulers, masks."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import secateur as sc
from networks.comparing import error, wide
from networks.drawn import ROWS, randn
from networks.plain import mlp
from networks.pruned import halved, kill
from secateur.errors import ModelError

TARGET = randn(6, 2, seed=9)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov with decay": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x=ROWS, target=TARGET) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(net(x), target).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_ten_steps_are_the_same(kind):
    net = mlp(3, 8, 6, 2, activation=nn.Tanh)
    _, masks = halved(net, ROWS)
    optimizer = OPTIMIZERS[kind](net.parameters())
    with masks.held(optimizer):
        for _ in range(5):
            step(net, optimizer)
        small, proof = sc.compact(net, ROWS, optimizer=optimizer, masks=masks)
        assert type(proof.optimizer) is type(optimizer)
        assert proof.optimizer.defaults == optimizer.defaults
        for _ in range(10):
            step(net, optimizer)
            step(small, proof.optimizer)
            assert error(net, small, ROWS) < 1e-5
    kept = masks["0.weight"][:, 0]
    assert torch.allclose(small[0].weight, net[0].weight[kept], rtol=0, atol=1e-5)
    assert torch.allclose(small[4].bias, net[4].bias, rtol=0, atol=1e-5)


def test_the_same_steps_through_a_batch_norm():
    net = wide(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)))
    _, masks = halved(net, ROWS)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with masks.held(optimizer):
        for _ in range(3):
            step(net, optimizer)
        small, proof = sc.compact(net, ROWS, optimizer=optimizer)
        assert small.training
        for _ in range(10):
            step(net, optimizer)
            step(small, proof.optimizer)
    assert error(net.eval(), small.eval(), ROWS) < 1e-5


def test_groups_and_settings_of_the_optimizer_are_kept():
    net = wide(mlp(3, 6, 2))
    kill(net, 0, [1])
    optimizer = torch.optim.SGD(
        [{"params": [net[2].weight], "lr": 0.3}, {"params": list(net[0].parameters()), "weight_decay": 0.2}],
        lr=0.1, momentum=0.9,
    )  # fmt: skip
    step(net, optimizer)
    kill(net, 0, [1])
    before = copy.deepcopy(optimizer.state_dict())
    small, proof = sc.compact(net, ROWS, optimizer=optimizer)
    moved = proof.optimizer
    assert [group["lr"] for group in moved.param_groups] == [0.3, 0.1]
    assert [group["weight_decay"] for group in moved.param_groups] == [0, 0.2]
    assert moved.param_groups[0]["params"] == [small[2].weight]
    assert [p is q for p, q in zip(moved.param_groups[1]["params"], small[0].parameters(), strict=True)] == [
        True,
        True,
    ]
    kept = [0, 2, 3, 4, 5]
    momentum = optimizer.state[net[2].weight]["momentum_buffer"]
    assert torch.equal(moved.state[small[2].weight]["momentum_buffer"], momentum[:, kept])
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(
        torch.equal(after["state"][i]["momentum_buffer"], before["state"][i]["momentum_buffer"])
        for i in range(3)
    )
    step(small, moved)
    assert torch.equal(optimizer.state[net[2].weight]["momentum_buffer"], momentum)


def test_an_optimizer_that_has_not_stepped():
    net = wide(mlp(3, 6, 2))
    kill(net, 0, [1])
    small, proof = sc.compact(net, ROWS, optimizer=torch.optim.Adam(net.parameters()))
    step(small, proof.optimizer)
    assert len(proof.optimizer.state) == 4


def test_the_optimizer_of_another_model_is_an_error():
    net = mlp(3, 6, 2)
    with pytest.raises(ModelError, match=r"make it from model\.parameters\(\)"):
        sc.compact(net, ROWS.float(), optimizer=torch.optim.SGD(mlp(3, 6, 2).parameters(), lr=0.1))


def test_several_optimizers_move_as_a_list():
    net = wide(mlp(3, 6, 2))
    halved(net, ROWS)
    first = torch.optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.AdamW(net[2].parameters(), lr=0.2)
    nn.functional.mse_loss(net(ROWS), TARGET).backward()
    first.step()
    second.step()
    small, proof = sc.compact(net, ROWS, optimizer=[first, second])
    moved = proof.optimizer
    assert [type(one) for one in moved] == [torch.optim.SGD, torch.optim.AdamW]
    assert [id(p) for one in moved for group in one.param_groups for p in group["params"]] == [
        id(p) for p in small.parameters()
    ]


class Wrapper(torch.optim.Optimizer):
    """As Accelerate wraps one: an optimizer that holds the real one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)


def test_a_wrapped_optimizer_gives_way_to_the_one_inside():
    net = wide(mlp(3, 6, 2))
    halved(net, ROWS)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    small, proof = sc.compact(net, ROWS, optimizer=Wrapper(inner))
    assert type(proof.optimizer) is torch.optim.SGD
    assert proof.optimizer is not inner
    step(small, proof.optimizer)


def test_a_wrapper_of_any_name_gives_way_too():
    class Around:
        def __init__(self, base):
            self.base, self.step = base, base.step

    net = wide(mlp(3, 6, 2))
    halved(net, ROWS)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    assert type(sc.compact(net, ROWS, optimizer=Around(inner))[1].optimizer) is torch.optim.SGD


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=40),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_scheduler_goes_on_with_the_small_network(kind, steps):
    net = wide(mlp(3, 8, 2, activation=nn.Tanh))
    _, masks = halved(net, ROWS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[kind](optimizer)
    measure = (1.0,) if kind == "plateau" else ()
    with masks.held(optimizer), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            step(net, optimizer)
            scheduler.step(*measure)
        small, proof = sc.compact(net, ROWS, optimizer=optimizer, scheduler=scheduler)
        assert type(proof.scheduler) is type(scheduler)
        assert not proof.notes
        before = copy.deepcopy([group["lr"] for group in optimizer.param_groups])
        rates = []
        for _ in range(6):
            step(small, proof.optimizer)
            proof.scheduler.step(*measure)
            rates.append(proof.optimizer.param_groups[0]["lr"])
        assert [group["lr"] for group in optimizer.param_groups] == before
        assert error(net, small, ROWS) > 1e-6  # the small one alone has been trained
        for rate in rates:
            step(net, optimizer)
            scheduler.step(*measure)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)
        assert error(net, small, ROWS) < 1e-5


def test_a_scheduler_that_stays_behind_is_said():
    net = wide(mlp(3, 6, 2))
    halved(net, ROWS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    lr_scheduler.StepLR(optimizer, 2)
    small, proof = sc.compact(net, ROWS, optimizer=optimizer)
    assert proof.notes == ("a scheduler still drives the old SGD; pass scheduler= to move it along",)
    before = net[0].weight.detach().clone()
    step(small, proof.optimizer)  # the wrapper that the scheduler put around step is the old one's
    assert torch.equal(net[0].weight, before)


def test_a_scheduler_of_another_optimizer_is_an_error():
    net = wide(mlp(3, 6, 2))
    first, second = (torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(ModelError, match="of another optimizer than optimizer="):
        sc.compact(net, ROWS, optimizer=first, scheduler=lr_scheduler.StepLR(second, 2))


@pytest.mark.parametrize("optimizer", ["adam", 3, object()])
def test_what_is_no_optimizer_is_an_error(optimizer):
    with pytest.raises(ModelError, match=r"it is one of torch\.optim, or a list of them"):
        sc.compact(mlp(3, 6, 2), ROWS.float(), optimizer=optimizer)


def test_an_optimizer_with_attributes_of_its_own():
    net = wide(mlp(3, 6, 2))
    kill(net, 0, [1])
    small, proof = sc.compact(net, ROWS, optimizer=torch.optim.LBFGS(net.parameters()))

    def closure():
        proof.optimizer.zero_grad()
        loss = nn.functional.mse_loss(small(ROWS), TARGET)
        loss.backward()
        return loss

    proof.optimizer.step(closure)
