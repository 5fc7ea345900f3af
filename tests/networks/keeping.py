"""Seven idioms in which a forward keeps things for itself: each multiplies by a grid that it keeps."""

from __future__ import annotations

import functools
from collections import deque

import torch
from torch import Tensor, nn

LENGTH, OTHER = 5, 7
DATA = [
    (torch.randn(4, 6, LENGTH, generator=torch.Generator().manual_seed(n)), torch.arange(4) % 3)
    for n in (1, 2)
]
X = DATA[0][0]


def grid(length: int) -> Tensor:
    return torch.arange(1, length + 1) / length


# -- seven idioms: each multiplies by a grid that it keeps ---------------------------------------------


class ClassDefault(nn.Module):
    kept = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or len(self.kept) != x.shape[-1]:
            self.kept = grid(x.shape[-1])
        return x * self.kept


class HasAttribute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "kept") or len(self.kept) != x.shape[-1]:
            self.kept = grid(x.shape[-1])
        return x * self.kept


class LateBuffer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if "kept" not in self._buffers or len(self.kept) != x.shape[-1]:
            self.register_buffer("kept", grid(x.shape[-1]), persistent=False)
        return x * self.kept


class Box:
    """A plain object, which no state dict and no list of buffers knows."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None
        self.calls = 0


class PlainObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.box = Box()

    def forward(self, x: Tensor) -> Tensor:
        self.box.calls += 1
        if self.box.kept is None or len(self.box.kept) != x.shape[-1]:
            self.box.kept = grid(x.shape[-1])
        return x * self.box.kept


@functools.lru_cache
def cached_grid(length: int) -> Tensor:
    return grid(length)


GRIDS: dict[int, Tensor] = {}


class Global(nn.Module):
    @functools.lru_cache  # noqa: B019
    def own_grid(self, length: int) -> Tensor:
        return grid(length)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        if length not in GRIDS:
            GRIDS[length] = grid(length)
        return x * cached_grid(length) * GRIDS[length] * self.own_grid(length)


class Filled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}
        self.outputs: list[Tensor] = []
        self.recent: deque[int] = deque(maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.kept.setdefault(x.shape[-1], grid(x.shape[-1]))
        self.outputs.append(y)
        self.recent.append(x.shape[-1])
        return y


class LastShape(nn.Module):
    """As a detection head keeps its anchors and strides."""

    shape: torch.Size | None = None
    anchors = strides = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape[1:]:
            self.anchors, self.strides = (
                part.transpose(0, 1) for part in (grid(x.shape[-1])[None], torch.ones(1, 1))
            )
            self.shape = x.shape[1:]
        return x * self.anchors[:, 0] * self.strides[0]


IDIOMS: tuple[type[nn.Module], ...] = (
    *(ClassDefault, HasAttribute, LateBuffer, PlainObject),
    *(Global, Filled, LastShape),
)


class Net(nn.Module):
    def __init__(self, *idioms: type[nn.Module]) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(6, 8, 1), nn.BatchNorm1d(8)
        self.keep = nn.Sequential(*(idiom() for idiom in idioms))
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.keep(torch.relu(self.norm(self.a(x)))).mean(-1))


def built(idioms: tuple[type[nn.Module], ...], state: str) -> Net:
    torch.manual_seed(0)
    cached_grid.cache_clear()
    Global.own_grid.cache_clear()
    GRIDS.clear()
    net = Net(*idioms).eval()
    net.norm.train()  # a flag of its own, which has to stay
    net.b.bias.requires_grad_(False)
    if state != "never run":
        net.eval()(torch.randn(2, 6, OTHER if state == "run at another shape" else LENGTH)).sum().backward()
        net.norm.train()
    return net
