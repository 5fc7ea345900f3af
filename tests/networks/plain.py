"""Networks without shortcuts: layers one after the other, and two branches beside each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(
    *sizes: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    seed: int | None = None,
) -> nn.Sequential:
    """Linear layers with an activation between; layer i is number 2 i."""
    if seed is not None:
        torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def linear(weight: list[list[float]] | Tensor, bias: list[float] | None = None) -> nn.Linear:
    """A Linear of given weights: ``linear([[1.0, -2.0]])``."""
    matrix = torch.as_tensor(weight, dtype=None if isinstance(weight, Tensor) else torch.float32)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, dtype=matrix.dtype)
    with torch.no_grad():
        layer.weight.copy_(matrix)
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def convnet() -> nn.Sequential:
    """A layer of every kind of convolution that is a target, and of what is never one; the same each time."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, padding=1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
    )


def pooled() -> nn.Sequential:
    """Max pooling, and a linear layer that reads each channel at four places."""
    torch.manual_seed(0)
    convs = (
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 3),
        nn.Tanh(),
    )
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(28, 9), nn.ReLU(), nn.Linear(9, 2)).double()


class Plain(nn.Module):
    """Two convs that feel the borders, a pool, and a linear layer that reads each channel four times."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=2)
        self.norm1 = nn.BatchNorm2d(6) if norms else nn.Identity()
        self.norm2 = nn.BatchNorm2d(4) if norms else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(4 * 4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = torch.max_pool2d(self.norm2(self.conv2(x)), 3).tanh()
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Concat(nn.Module):
    """Two branches beside each other, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], -1))


class Coder(nn.Module):
    """An encoder and a decoder, which have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())

    def decode(self, z: Tensor) -> Tensor:
        return self.c(z.relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
