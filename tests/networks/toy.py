"""A toy to train: data, a loss, one step with any optimizer; for the tests of holding and schedules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW


class Normalised(torch.optim.Optimizer):
    """Steps of one length for the whole tensor, as LARS and Muon take: dead gradients would count."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p -= 0.05 * p.grad / p.grad.norm()


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "momentum foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "momentum fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "adam with decay": lambda p: Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adam foreach": lambda p: Adam(p, lr=0.01, foreach=True),
    "adam fused": lambda p: Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw one by one": lambda p: AdamW(p, lr=0.01, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
    "normalised": Normalised,
    "lbfgs": lambda p: LBFGS(p, lr=0.1, max_iter=4),
    "lbfgs strong_wolfe": lambda p: LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
}
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(7))
Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(8))


def loss_of(net: nn.Module) -> Tensor:
    return nn.functional.mse_loss(net(X), Y)


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    if isinstance(optimizer, LBFGS):
        return optimizer.step(closure)
    loss = closure()
    optimizer.step()
    return loss


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{n}": getattr(net[i], n).detach().clone() for i in (0, 2) for n in ("weight", "bias")}


def hooks(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
