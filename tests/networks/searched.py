"""Networks to search greedily, and labelled images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convs with norms, a pool and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 7, 3, stride=2)
        self.fc1 = nn.Linear(7 * 4, 9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = torch.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Residual(nn.Module):
    """A stream that two blocks read and write, one with squeeze and excitation and a depthwise conv."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.b1, self.deep = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Linear(8, 3), nn.Linear(3, 8)
        self.b2 = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.a2(self.a1(x).relu())
        y = self.deep(self.b1(x.relu())).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        x = x + self.b2(y)
        return self.head(x.relu().mean((2, 3)))


class Views(nn.Module):
    """Sizes of the batch in views, a token dim, and layer norms inside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 11), nn.Linear(11, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = self.embed(x)
        y = self.up(self.norm(x).view(batch * length, 8)).relu()
        x = x + self.down(y).view(batch, length, 8)
        return self.head(x.mean(1))


def images(number: int = 60, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 2, 11, 11, generator=generator)
    return [(x, torch.randint(0, 4, (number,), generator=generator))]


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = kind()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model
