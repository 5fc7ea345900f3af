"""Small convolutional networks: how channels are made, joined, split and flattened."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization

from ..zoo import Zoo, floats

CONV = Zoo()
IMAGE = floats((2, 3, 20, 14))
CLASSES = 11


def conv(inside: int, outside: int, size: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, **{"padding": size // 2, **options})


def cbr(inside: int, outside: int, size: int = 3, **options: object) -> nn.Sequential:
    layer = conv(inside, outside, size, **{"bias": False, **options})
    return nn.Sequential(layer, nn.BatchNorm2d(outside), nn.ReLU())


class Head(nn.Module):
    """Global average pooling and a linear classifier."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inside, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


@CONV(IMAGE)
class PlainCNN(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.ReLU(), nn.MaxPool2d(2), conv(16, 24), nn.ReLU(), Head(24))


@CONV(IMAGE)
class PlainBatchNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 16), cbr(16, 24, stride=2), conv(24, 36), nn.BatchNorm2d(36), Head(36))


@CONV(IMAGE)
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = cbr(3, 16), cbr(16, 24), conv(24, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))


@CONV(IMAGE)
class ResidualProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 16), cbr(16, 24, stride=2), conv(24, 36)
        self.project = nn.Sequential(conv(16, 36, 1, stride=2, bias=False), nn.BatchNorm2d(36))
        self.c, self.d, self.head = cbr(36, 28), conv(28, 36), Head(36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.project(x) + self.b(self.a(x)))
        return self.head(F.relu(x + self.d(self.c(x))))


@CONV(IMAGE)
class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(24), nn.BatchNorm2d(16)])
        self.a, self.b, self.head = conv(16, 24), conv(24, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(F.relu(self.norms[0](x)))
        y = self.b(F.relu(self.norms[1](y)))
        return self.head(F.relu(self.norms[2](x + y)))


@CONV(IMAGE)
class DenseConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [16, 28, 40, 52]
        self.stem = cbr(3, 16)
        self.layers = nn.ModuleList([cbr(w, 12) for w in widths[:-1]])
        self.norm, self.transition, self.head = nn.BatchNorm2d(52), conv(52, 26, 1), Head(26)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.avg_pool2d(self.transition(self.norm(torch.cat(features, 1))), 2))


@CONV(IMAGE)
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 18)
        self.one, self.three = cbr(18, 8, 1), nn.Sequential(cbr(18, 12, 1), cbr(12, 16))
        self.five = nn.Sequential(cbr(18, 9, 1), cbr(9, 13, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(18, 11, 1))
        self.mix, self.head = conv(48, 22), Head(22)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)))


@CONV(IMAGE)
class GroupedConv(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 24), cbr(24, 40, groups=4), cbr(40, 30, groups=5), Head(30))


@CONV(IMAGE)
class ResnextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.grouped = cbr(3, 32), cbr(32, 18, 1), cbr(18, 18, groups=6)
        self.up, self.head = conv(18, 32, 1), Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.up(self.grouped(self.down(x)))))


@CONV(IMAGE)
class DepthwiseSeparable(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 16),
            cbr(16, 16, groups=16),
            cbr(16, 24, 1),
            cbr(24, 24, groups=24, stride=2),
            cbr(24, 36, 1),
        )
        self.append(Head(36))


@CONV(IMAGE)
class DepthMultiplier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 12), cbr(12, 36, groups=12), cbr(36, 22, 1), Head(22))


@CONV(IMAGE)
class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.deep = cbr(3, 16), cbr(16, 40, 1), cbr(40, 40, 5, groups=40)
        self.reduce, self.grow = conv(40, 9, 1), conv(9, 40, 1)
        self.down = nn.Sequential(conv(40, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.deep(self.up(x)))
        gate = F.hardsigmoid(self.grow(F.relu(self.reduce(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(x + self.down(y * gate))


@CONV(IMAGE)
class SqueezeExcite(nn.Module):
    """The gate is made by linear layers and viewed back, with sizes of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = cbr(3, 24), nn.Linear(24, 6), nn.Linear(6, 24)
        self.b, self.head = cbr(24, 18), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        batch, channels, _, _ = x.shape
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(batch, channels)))))
        return self.head(self.b(x * gate.view(batch, channels, 1, 1)))


@CONV(IMAGE)
class TransposedConv(nn.Sequential):
    def __init__(self) -> None:
        up = nn.ConvTranspose2d(16, 24, 4, stride=2, padding=1)
        super().__init__(cbr(3, 16, stride=2), up, nn.BatchNorm2d(24), nn.ReLU(), conv(24, 5))


@CONV(IMAGE)
class GroupedTransposed(nn.Sequential):
    def __init__(self) -> None:
        up = nn.ConvTranspose2d(18, 24, 2, stride=2, groups=3)
        deep = nn.ConvTranspose2d(24, 24, 3, padding=1, groups=24)
        super().__init__(cbr(3, 18, stride=2), up, nn.ReLU(), deep, nn.ReLU(), conv(24, 5))


@CONV(floats((3, 5, 22)))
class Conv1dNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(5, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 3, stride=2)
        )
        self.extend([nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, CLASSES)])


@CONV(floats((2, 3, 6, 10, 8)))
class Conv3dNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 12, 3, padding=1),
            nn.BatchNorm3d(12),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(12, 18, 3),
        )
        self.extend([nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(18, CLASSES)])


@CONV(floats((2, 3, 6, 10, 8)))
class TransposedConv3d(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose3d(12, 16, 2, 2),
            nn.Conv3d(16, 5, 1),
        )


@CONV(IMAGE)
class ShuffleNet(nn.Module):
    """Half of the channels pass by; the joined halves are shuffled by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 24)
        self.branch = nn.Sequential(cbr(12, 12, 1), cbr(12, 12, groups=12), cbr(12, 12, 1))
        self.last, self.head = cbr(24, 34, 1), Head(34)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(self.last(x))


@CONV(IMAGE)
class GroupedShuffle(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 24), cbr(24, 36, 1, groups=3), nn.ChannelShuffle(3))
        self.extend([cbr(36, 36, groups=36), cbr(36, 30, 1, groups=3), Head(30)])


@CONV(IMAGE)
class PixelShuffle(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 18), conv(18, 32), nn.PixelShuffle(2), nn.ReLU(), conv(8, 5))


@CONV(IMAGE)
class PixelUnshuffle(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 9), nn.PixelUnshuffle(2), conv(36, 16), nn.ReLU(), Head(16))


@CONV(IMAGE)
class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 12), cbr(12, 24), cbr(24, 40)
        self.up = nn.ConvTranspose2d(40, 22, 2, stride=2)
        self.d, self.out = cbr(34, 16), conv(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x)
        x = self.c(self.b(F.max_pool2d(skip, 2)))
        return self.out(self.d(torch.cat([self.up(x), skip], 1)))


@CONV(IMAGE)
class UpsampleUnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = cbr(3, 12), cbr(12, 28, stride=2), cbr(40, 16), conv(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x)
        deep = F.interpolate(self.b(skip), size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.c(torch.cat([skip, deep], 1)))


@CONV(IMAGE)
class FeaturePyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([cbr(3, 12, stride=2), cbr(12, 24, stride=2), cbr(24, 36, stride=2)])
        self.laterals = nn.ModuleList([conv(w, 16, 1) for w in (12, 24, 36)])
        self.smooth = nn.ModuleList([conv(16, w) for w in (4, 5, 6)])

    def forward(self, x: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        tops = [lateral(x) for lateral, x in zip(self.laterals, levels, strict=True)]
        for i in (1, 0):
            tops[i] = tops[i] + F.interpolate(tops[i + 1], size=tops[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, tops, strict=True)]


@CONV(IMAGE)
class DilatedPyramid(nn.Module):
    """Dilated branches and an image-wide branch, as in atrous pyramid pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 18, stride=2)
        self.branches = nn.ModuleList(
            [conv(18, w, padding=d, dilation=d) for w, d in ((8, 1), (9, 2), (13, 3))]
        )
        self.whole, self.project, self.out = conv(18, 12, 1), cbr(42, 24, 1), conv(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        whole = self.whole(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])
        return self.out(self.project(torch.cat([*(b(x) for b in self.branches), whole], 1)))


@CONV(IMAGE)
class RepvggBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.big, self.one = cbr(3, 18), conv(18, 18), conv(18, 18, 1)
        self.identity, self.next, self.head = nn.BatchNorm2d(18), cbr(18, 26), Head(26)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.next(F.relu(self.big(x) + self.one(x) + self.identity(x))))


@CONV(IMAGE)
class GhostBlock(nn.Module):
    """Cheap copies beside the first features, cut to an attribute's size."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 28
        self.first, self.cheap = cbr(3, 16), cbr(16, 16, groups=16)
        self.last, self.head = cbr(28, 22), Head(22)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.last(torch.cat([x, self.cheap(x)], 1)[:, : self.channels]))


@CONV(IMAGE)
class Res2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = cbr(3, 18), cbr(18, 32, 1)
        self.parts = nn.ModuleList([cbr(8, 8) for _ in range(3)])
        self.outside, self.head = conv(32, 18, 1), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, *rest = self.inside(x).chunk(4, 1)
        done, last = [first], torch.zeros_like(first)
        for part, piece in zip(self.parts, rest, strict=True):
            last = part(piece + last)
            done.append(last)
        return self.head(F.relu(x + self.outside(torch.cat(done, 1))))


@CONV(IMAGE)
class CrossStagePartial(nn.Module):
    """YOLO's block: a chunk passes by, every stage is kept for the joint."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = cbr(3, 18), cbr(18, 24, 1)
        self.stages = nn.ModuleList([nn.Sequential(cbr(12, 9), cbr(9, 12)) for _ in range(2)])
        self.outside, self.head = cbr(48, 26, 1), Head(26)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.inside(self.stem(x)).chunk(2, 1))
        for stage in self.stages:
            parts.append(parts[-1] + stage(parts[-1]))
        return self.head(self.outside(torch.cat(parts, 1)))


@CONV(IMAGE)
class QuantisationAware(nn.Module):
    """Trained for integers: what is multiplied is fake-quantised, with scales by channel and by tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.body = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 24), nn.ReLU(), Head(24))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            quantization.prepare_qat(self.train(), inplace=True)
        self(IMAGE()[0][0])
        self.apply(quantization.disable_observer)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.body(self.quant(x)))
