"""Zeros hold in optimizers around optimizers, in several at once, and in copies of weights that they keep."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

import secateur as sc
from networks.toy import hooks, loss_of, step
from secateur.errors import MaskError
from secateur.pruning.holding import levels_of


class TimmLookahead(torch.optim.Optimizer):
    """As timm writes it: no ``super().__init__()``, slow weights in the state of the optimizer inside."""

    def __init__(self, base: torch.optim.Optimizer, alpha: float = 0.5, k: int = 2) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self._base_optimizer = base
        self.param_groups = base.param_groups
        self.defaults = base.defaults
        self.state = defaultdict(dict)
        self.alpha, self.k, self.number = alpha, k, 0

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        loss = self._base_optimizer.step(closure)
        self.number += 1
        if self.number % self.k == 0:
            for p in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
                state = self._base_optimizer.state[p]
                slow = state.setdefault("lookahead_slow_buff", p.clone())
                slow.add_(p - slow, alpha=self.alpha)
                p.copy_(slow)
        return loss


class ListLookahead:
    """No Optimizer at all, with slow weights taken when it is made, in a list of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.slow = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            for p, s in zip(group["params"], slow, strict=True):
                s += 0.5 * (p - s)
                p.copy_(s)
        return loss


class Combined:
    """Drives one optimizer for matrices and one for the rest, as Muon is used."""

    def __init__(self, net: nn.Module) -> None:
        matrices = [p for p in net.parameters() if p.dim() > 1]
        self.parts = [
            SGD(matrices, lr=0.05, momentum=0.9),
            AdamW([p for p in net.parameters() if p.dim() < 2]),
        ]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


class Plain:
    """A user's own, which is no Optimizer and has none inside."""

    def __init__(self, params) -> None:
        self.param_groups = [{"params": list(params)}]

    def zero_grad(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p -= 0.1 * p.grad + 0.01


def accelerated(net: nn.Module) -> Any:
    import accelerate

    return accelerate.Accelerator(cpu=True).prepare(Adam(net.parameters(), lr=0.05))


def schedule_free(name: str) -> Any:
    def make(net: nn.Module) -> Any:
        import schedulefree

        optimizer = getattr(schedulefree, name)(net.parameters(), lr=0.05)
        optimizer.train()
        return optimizer

    return make


def schedule_free_around(name: str) -> Any:
    def make(net: nn.Module) -> Any:
        import schedulefree

        optimizer = getattr(schedulefree, name)(SGD(net.parameters(), lr=0.05), momentum=0.9)
        optimizer.train()
        return optimizer

    return make


def accelerated_schedule_free(net: nn.Module) -> Any:
    import accelerate

    optimizer = accelerate.Accelerator(cpu=True).prepare(schedule_free("AdamWScheduleFree")(net))
    optimizer.train()
    return optimizer


WRAPPED = {
    "timm's lookahead": lambda net: TimmLookahead(Adam(net.parameters(), lr=0.05)),
    "lookahead of a list": lambda net: ListLookahead(SGD(net.parameters(), lr=0.1, momentum=0.9)),
    "lookahead of lookahead": lambda net: ListLookahead(TimmLookahead(AdamW(net.parameters(), lr=0.05))),
    "combined": Combined,
    "plain": lambda net: Plain(net.parameters()),
    "accelerate": accelerated,
    "schedule-free sgd": schedule_free("SGDScheduleFree"),
    "schedule-free adamw": schedule_free("AdamWScheduleFree"),
    "schedule-free radam": schedule_free("RAdamScheduleFree"),
    "schedule-free reference": schedule_free("AdamWScheduleFreeReference"),
    "schedule-free wrapper": schedule_free_around("ScheduleFreeWrapper"),
    "schedule-free wrapper, reference": schedule_free_around("ScheduleFreeWrapperReference"),
    "schedule-free in accelerate": accelerated_schedule_free,
}


def swap(optimizer: Any, way: str) -> None:
    if hasattr(optimizer, way):
        getattr(optimizer, way)()


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_zeros_hold_from_the_first_step_on(mlp, make):
    net = mlp()
    optimizer = make(net)
    for _ in range(3):
        step(net, optimizer)  # momentum and slow weights of the dense network
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    start = copy.deepcopy(net.state_dict())
    with masks.held(optimizer):
        for _ in range(5):
            step(net, optimizer)
            masks.check()
            swap(optimizer, "eval")
            masks.check()
            swap(optimizer, "train")
            masks.check()
    for level in (one.optimizer for one in levels_of(optimizer)):
        assert "step" not in vars(level)
        assert not hasattr(level, "_optimizer_step_pre_hooks") or hooks(level) == 0
    swap(optimizer, "eval")
    masks.check()
    for name, weight in net.state_dict().items():
        assert not torch.equal(weight, start[name])


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_pruning_during_steps_counts_each_once(mlp, make):
    net = mlp()
    optimizer = make(net)
    schedule = sc.Cubic(steps=3)
    with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.75), schedule, every=2) as pruning:
        for number in range(1, 8):
            step(net, optimizer)
            assert pruning.steps == number
            assert pruning.level == min(3, 1 + number // 2)
            pruning.masks.check()
    swap(optimizer, "eval")
    assert sc.sparsity(net) == 0.75


def test_accumulation_and_skipped_steps_of_accelerate_are_no_steps(mlp):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = mlp()
    net, optimizer = accelerator.prepare(net, Adam(net.parameters(), lr=0.05))
    with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3), every=1) as pruning:
        for _ in range(4):
            with accelerator.accumulate(net):
                accelerator.backward(loss_of(net))
                optimizer.step()
                optimizer.zero_grad()
                pruning.masks.check()
    assert pruning.steps == 2


@pytest.mark.parametrize("muon", [False, True])
def test_several_optimizers_at_once(mlp, muon):
    net = mlp()
    matrices = [p for p in net.parameters() if p.dim() > 1]
    if muon and not hasattr(torch.optim, "Muon"):
        pytest.skip("no Muon in this torch")
    first = torch.optim.Muon(matrices, lr=0.02) if muon else SGD(matrices, lr=0.1, momentum=0.9)
    second = AdamW([p for p in net.parameters() if p.dim() == 1], lr=0.05)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5), include=["0.weight", "2.*", "*.bias"])

    def train() -> None:
        for optimizer in (first, second):
            optimizer.zero_grad()
        loss_of(net).backward()
        for optimizer in (first, second):
            optimizer.step()

    with masks.held([first, second]):
        for _ in range(4):
            train()
            masks.check()
    schedule = sc.Cubic(2, initial=0.5)
    with sc.during((first, second), net, sc.Magnitude(), sc.Global(0.8), schedule, every=2) as pruning:
        for _ in range(4):
            train()
    assert pruning.steps == 4
    assert hooks(first) == hooks(second) == 0
    train()
    with pytest.raises(MaskError, match=r"0\.weight: \d+ masked weights are not zero; \d+ in 4 tensors;"):
        masks.check()


def test_a_scheduler_made_inside_the_block_stays(mlp):
    net = mlp()
    optimizer = TimmLookahead(SGD(net.parameters(), lr=1.0))
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    optimizer.defaults["lr"] = 1.0
    with masks.held(optimizer):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for _ in range(2):
            step(net, optimizer)
            scheduler.step()
        masks.check()
    step(net, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.25
    with pytest.raises(MaskError, match="not zero"):
        masks.check()  # nothing holds any more


class Blind:
    """Drives nobody knows what."""

    def step(self) -> None:
        pass


class Slots:
    __slots__ = ("param_groups",)

    def __init__(self, params) -> None:
        self.param_groups = [{"params": list(params)}]

    def step(self) -> None:
        pass


class MasterWeights:
    """As apex's FP16_Optimizer: what is inside updates copies, not the model's own parameters."""

    def __init__(self, params) -> None:
        self.optimizer = SGD([p.detach().double().requires_grad_() for p in params], lr=0.1)

    def step(self) -> None:
        self.optimizer.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: Blind(), "Blind has no param_groups, nor an optimizer inside"),
        (lambda net: Slots(net.parameters()), "Slots cannot be hooked; give a torch.optim.Optimizer"),
        (lambda net: MasterWeights(net.parameters()), "the optimizer updates none of"),
        (lambda net: [], r"optimizer is \[\]; it is the one that trains the model, or a list"),
        (lambda net: [SGD(net.parameters(), lr=0.1), None], "optimizer is None; it is the one that trains"),
        (lambda net: net, "is the one that trains"),
        (lambda net: SGD, "is the one that trains"),
    ],
)
def test_what_cannot_be_held_is_refused_at_the_start(mlp, make, message):
    net = mlp()
    masks = sc.Masks(net, {"0.weight": torch.zeros(16, 8, dtype=torch.bool)})
    for enter in (
        masks.held(make(net)),
        sc.during(make(net), net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3), every=1),
    ):
        with pytest.raises(MaskError, match=message):
            enter.__enter__()
    assert sc.sparsity(net) == 0


# -- sparse gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SparseAdam(p, lr=0.1),
        lambda p: SGD(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
)
def test_sparse_gradients_of_an_embedding(make):
    torch.manual_seed(0)
    net = nn.Embedding(20, 6, sparse=True)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5), include="weight")
    optimizer = make(net.parameters())
    with masks.held(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.tensor([3, 5, 5, 7])).square().sum().backward()
            net(torch.tensor([5, 9])).sum().backward()
            dense = net.weight.grad.to_dense() * masks["weight"]
            masks.mask_grads()
            assert net.weight.grad.is_sparse
            torch.testing.assert_close(net.weight.grad.to_dense(), dense)
            optimizer.step()
            masks.check()
    assert sc.Taylor()(
        sc.find_targets(net, include="weight"), [(torch.tensor([[3, 5]]), 0)], lambda y, _: y.sum()
    )["weight"](slice(0, 6)).count_nonzero()


def test_state_loaded_inside_the_block_is_held(mlp):
    net = mlp()
    looser, tighter = (sc.prune(mlp(), sc.Magnitude(), sc.Uniform(s)) for s in (0.25, 0.75))
    masks = looser.bind(net)
    optimizer = Adam(net.parameters(), lr=0.05)
    with masks.held(optimizer):
        step(net, optimizer)
        masks.load_state_dict(tighter.state_dict())
        step(net, optimizer)
        masks.check()
    assert masks == tighter
    assert sc.sparsity(net) == 0.75
