"""The CIFAR ResNets of He et al. (2016), with parameter-free shortcuts (option A) or projections (B)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.models.options import check_counts, check_number


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.extra = outputs - inputs
        self.projection: nn.Module | None = None
        if shortcut == "conv" and (stride > 1 or self.extra):
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.projection = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.projection is not None:
            x = self.projection(x)
        elif self.stride > 1 or self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return (x + y).relu()


class ResNet(nn.Module):
    def __init__(self, blocks: int, classes: int, width: float, shortcut: str) -> None:
        super().__init__()
        if shortcut not in ("pad", "conv"):
            raise ModelError(f"shortcut is {shortcut!r}; it is 'pad' or 'conv'")
        check_counts(classes=classes)
        check_number("width", width, 0.01, 16)
        widths = [max(1, round(base * width)) for base in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, out in enumerate(widths):
            for index in range(blocks):
                layers.append(Block(channels, out, 2 if stage and not index else 1, shortcut))
                channels = out
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn1(self.conv1(x)).relu())
        return self.fc(x.mean((2, 3)))


def resnet_20(classes: int = 10, width: float = 1.0, shortcut: str = "pad") -> nn.Module:
    """ResNet-20 for 32 x 32 images (He et al., 2016): 269,722 parameters. ``shortcut``: where a block
    changes the size, "pad" with zeros (option A), or a 1 x 1 "conv" with its norm (B)."""
    return ResNet(3, classes, width, shortcut)


def resnet_56(classes: int = 10, width: float = 1.0, shortcut: str = "pad") -> nn.Module:
    """ResNet-56 for 32 x 32 images (He et al., 2016): 853,018 parameters; ``shortcut`` as above."""
    return ResNet(9, classes, width, shortcut)
