"""Networks and blocks of convolutions around shortcuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class Strided(nn.Module):
    """A stream with a block, a strided block with a depthwise convolution, and a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b0 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.c1, self.b1 = nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.c2, self.b2 = nn.Conv2d(10, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.c3, self.b3 = nn.Conv2d(12, 14, 3, stride=2, padding=1), nn.BatchNorm2d(14)
        self.deep, self.act = nn.Conv2d(14, 14, 3, padding=1, groups=14), nn.PReLU(14)
        self.c4, self.b4 = nn.Conv2d(14, 20, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(20)
        self.short = nn.Conv2d(12, 20, 1, stride=2)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b0(self.stem(x)).relu()
        x = (x + self.b2(self.c2(self.b1(self.c1(x)).relu()))).relu()
        y = self.b4(self.c4(self.act(self.deep(self.b3(self.c3(x)).relu()))))
        return self.head((y + self.short(x)).relu().mean((2, 3)))


class PostActivation(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))); ``project``: through a convolution."""

    def __init__(self, inner: int = 5, project: bool = False) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(6, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.bn_b = nn.Conv2d(inner, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.short = nn.Conv2d(6, 6, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.bn_b(self.b(self.bn_a(self.a(x)).relu())), inplace=True)


class PreActivation(nn.Module):
    """x + conv(relu(conv(relu(bn(x)))))."""

    def __init__(self, inner: int = 4, kernel: int = 3) -> None:
        super().__init__()
        self.bn, self.a = nn.BatchNorm2d(6), nn.Conv2d(6, inner, kernel, padding=kernel // 2)
        self.b = nn.Conv2d(inner, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(self.bn(x).relu()).relu())


def images(*blocks: nn.Module, relu: bool = True) -> nn.Sequential:
    """A stem of six channels, blocks on them, and a head, in float64."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU() if relu else nn.Identity()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()
