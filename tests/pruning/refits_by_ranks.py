"""One process of several that refit one network together, each with data of its own; see
``test_refits_by_ranks``, which also runs these cases as one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secateur as sc

Wrap = Callable[[nn.Module], nn.Module]
BATCHES = 4


def make() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


class Sometimes(nn.Module):
    """A network of which a part runs on large inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.always, self.now_and_then, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.always(x).relu()
        return self.last(self.now_and_then(x) if x.shape[0] > 20 else x)


def batches(numbers: range) -> list[Tensor]:
    """Batches of different sizes and scales, so that each rank on its own would choose otherwise."""
    generators = {number: torch.Generator().manual_seed(number) for number in numbers}
    return [(1 + n) * torch.randn(6 + n, 3, 6, 6, generator=g) for n, g in generators.items()]


def rows(numbers: range) -> list[Tensor]:
    return [torch.randn(18 + n, 8, generator=torch.Generator().manual_seed(n)) for n in numbers]


def chosen(net: nn.Module, budget: Any, data: Any, wrap: Wrap) -> dict[str, Tensor]:
    masks = sc.sparsegpt(wrap(net), budget, data)
    return {**{f"mask of {n}": m for n, m in masks.items()}, **net.state_dict()}


def refitted(data: list[Tensor], wrap: Wrap) -> dict[str, Any]:
    net, dense = make(), make()
    structure = sc.trace(net, data[0] if data else torch.randn(6, 3, 6, 6))
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    refit = sc.reconstruct(wrap(net), dense, structure, data)
    return {**net.state_dict(), **{f"error of {n}": torch.tensor(both) for n, both in refit.layers.items()}}


def eliminated(data: list[Tensor], wrap: Wrap) -> dict[str, Tensor]:
    net = make()
    structure = sc.trace(net, torch.randn(6, 3, 6, 6))
    return dict(sc.prune(wrap(net), sc.Reconstruction(), sc.Uniform(0.5), data=data, structure=structure))


def cases(numbers: range, wrap: Wrap) -> dict[str, dict[str, Any]]:
    """Return by case the masks and weights that come out where these of the batches are read."""
    data, few = batches(numbers), batches(numbers)[:1]
    return {
        "sparsegpt": chosen(make(), sc.Uniform(0.5), data, wrap),
        "sparsegpt 2:4": chosen(make(), sc.NM(2, 4), data, wrap),
        "a part that few ranks run": chosen(Sometimes(), sc.Uniform(0.5), rows(numbers), lambda net: net),
        "reconstruct": refitted(data, wrap),
        "reconstruct from few rows": refitted([x[:2] for x in few] if 0 in numbers else [], wrap),
        "Reconstruction": eliminated(data, wrap),
    }


def said(call: Callable[[], Any], net: nn.Module) -> str:
    before = [p.clone() for p in net.parameters()]
    try:
        call()
        return "nothing"
    except Exception as error:
        unchanged = all(map(torch.equal, before, net.parameters()))
        return f"{type(error).__name__}, {'unchanged' if unchanged else 'CHANGED'}: {error}"


def found_by(rank: int, number: int) -> dict[str, Any]:
    own = range(rank * BATCHES // number, (rank + 1) * BATCHES // number)
    found: dict[str, Any] = dict(cases(own, DistributedDataParallel))
    net = make()
    bad = [x[:, :2] if rank else x for x in batches(own)]
    found["said"] = {
        "bad data": said(lambda: sc.sparsegpt(net, sc.Uniform(0.5), bad), net),
        "no batch": said(lambda: sc.sparsegpt(net, sc.Uniform(0.5), []), net),
    }
    found["alone"] = chosen_alone(batches(own))
    return found


def chosen_alone(data: list[Tensor]) -> dict[str, Tensor]:
    return dict(sc.sparsegpt(make(), sc.Uniform(0.5), data, group=False))
