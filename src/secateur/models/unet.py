"""A small U-Net for segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.models.options import check_counts


class Double(nn.Sequential):
    """Two 3 x 3 convs, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """``depth`` times halved by pooling and as often doubled again, each level joined with its twin."""

    def __init__(self, classes: int, channels: int, width: int, depth: int) -> None:
        super().__init__()
        check_counts(classes=classes, channels=channels, width=width, depth=depth)
        if depth > 6:
            raise ModelError(f"depth is {depth}; it is a whole number from 1 to 6")
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            Double(before, after) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            Double(below + beside, beside)
            for below, beside in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.down[0](x)]
        for block in self.down[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        y = levels.pop()
        for block in self.up:
            y = block(torch.cat((levels.pop(), F.interpolate(y, scale_factor=2.0)), 1))
        return self.head(y)


def unet(classes: int = 11, channels: int = 3, width: int = 8, depth: int = 2) -> nn.Module:
    """A small U-Net (after Ronneberger et al., 2015) with batch norms: a class for each pixel.

    Sides are multiples of 2 to the ``depth``; the first level has ``width`` channels, the next twice as many.
    """
    return UNet(classes, channels, width, depth)
