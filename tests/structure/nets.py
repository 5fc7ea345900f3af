"""Networks of distinct sizes whose units can be written down by hand, and ways to compare."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.graph.compare import tensors_in
from secateur.structure.units import Group, Structure

Members = dict[tuple[str, int], list[list[int]]]


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers with an activation between; layer i is number 2 i."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


class Between(nn.Module):
    """``b(op(a(x)))``."""

    def __init__(self, a: nn.Module, op: Callable[[Tensor], Tensor], b: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.op = a, b, op

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.op(self.a(x)))


class After(nn.Module):
    """``op(self, x)``, with the modules and parameters given by name."""

    def __init__(self, op: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.op = op

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.op(self, *args, **kwargs)


class Residual(nn.Module):
    """A stem, a block of two convolutions with batch norms around a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a, self.bn_a = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b, self.bn_b = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bn_b(self.b(self.bn_a(self.a(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches beside each other, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], -1))


class FusedHeads(nn.Module):
    """Three heads of four channels behind one projection to queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 3, 4
        self.qkv, self.out = nn.Linear(7, 36), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class GroupedQuery(nn.Module):
    """Six query heads on two key-value heads of four channels."""

    def __init__(self, scale: float | None = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.q = nn.Linear(7, 24, bias=False)
        self.k, self.v = nn.Linear(7, 8, bias=False), nn.Linear(7, 8, bias=False)
        self.o = nn.Linear(24, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part(x).view(b, t, -1, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(2))


def members(group: Group) -> Members:
    """What each unit of a group has in each tensor."""
    return {(part.name, part.dim): part.indices.tolist() for part in group.slices}


def only(structure: Structure) -> Group:
    """The one group of a structure."""
    (group,) = structure.groups.values()
    return group


def singles(number: int) -> list[list[int]]:
    return [[i] for i in range(number)]


def reasons(structure: Structure) -> dict[tuple[str, int], str]:
    return {(p.name, p.dim): p.reason for p in structure.protected}


def wide(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, where comparisons are exact."""
    return model.double().eval()


@torch.no_grad()
def error(model: nn.Module, small: nn.Module, *draws: Any, **kwargs: Any) -> float:
    """The largest difference of all outputs on all draws of inputs."""
    worst = 0.0
    for draw in draws:
        args = draw if isinstance(draw, tuple) else (draw,)
        pairs = zip(tensors_in(model(*args, **kwargs)), tensors_in(small(*args, **kwargs)), strict=True)
        worst = max([worst, *(float((a - b).abs().max()) for a, b in pairs)])
    return worst


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[n], t) for n, t in before.items())
