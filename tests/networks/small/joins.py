"""Small convolutional networks: constants, shared modules, several inputs and outputs, odd products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Zoo, floats
from .conv import CLASSES, IMAGE, Head, cbr, conv

JOINS = Zoo()


@JOINS(IMAGE)
class CatConstant(nn.Module):
    """Coordinates from a buffer and ones from a factory are joined to the channels."""

    def __init__(self) -> None:
        super().__init__()
        grid = torch.meshgrid(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 14), indexing="ij")
        self.register_buffer("grid", torch.stack(grid))
        self.a, self.b, self.head = cbr(3, 16), cbr(19, 24), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        ones = torch.ones(x.shape[0], 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        return self.head(self.b(torch.cat([x, self.grid.expand(x.shape[0], -1, -1, -1), ones], 1)))


@JOINS(IMAGE)
class CatInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 16), cbr(19, 24), cbr(27, 22), Head(22)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.cat([x, self.b(torch.cat([self.a(x), x], 1))], 1)))


@JOINS(IMAGE)
class StackSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branches = cbr(3, 12), nn.ModuleList([cbr(12, 18, k) for k in (1, 3, 5)])
        self.last, self.head = cbr(18, 26), Head(26)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(torch.stack([b(x) for b in self.branches]).sum(0)))


@JOINS(IMAGE)
class UnbindStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.last, self.head = cbr(3, 12), cbr(12, 48), cbr(16, 22), Head(22)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.wide(self.stem(x)).unflatten(1, (3, -1)).unbind(1)
        return self.head(self.last(first * torch.sigmoid(second) + third))


@JOINS(IMAGE)
class MaxoutChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 36), conv(18, 32), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = (x := self.a(x)).shape
        x = x.view(b, c // 2, 2, h, w).max(2)[0]
        return self.head(torch.maximum(*self.b(x).chunk(2, 1)))


@JOINS(IMAGE)
class TwoPools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 16), cbr(16, 26), nn.Linear(52, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.fc(torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1).flatten(1))


@JOINS(IMAGE)
class MeanVariancePool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 16), cbr(16, 26), nn.Linear(52, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).flatten(2)
        return self.fc(torch.cat([x.mean(2), torch.sqrt(x.var(2) + 1e-5)], 1))


@JOINS(IMAGE)
class SharedConv(nn.Module):
    """One convolution called twice, at two places of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.down, self.head = cbr(3, 18), cbr(18, 18), cbr(18, 28), Head(28)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stem(x))
        return self.head(self.down(self.shared(F.max_pool2d(x, 2))))


@JOINS(floats((2, 3, 20, 14), (2, 3, 20, 14)))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(cbr(3, 16), cbr(16, 28, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(84, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.encode(left), self.encode(right)
        return self.fc(torch.cat([(a - b).abs(), a * b, a + b], 1))


@JOINS(floats((2, 3, 20, 14), (2, 5)))
class TwoInputsTwoOutputs(nn.Module):
    """A feature vector is added to the channels; both a map and a vector are given back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 18), nn.Linear(5, 18), cbr(18, 26)
        self.map, self.head = conv(26, 4, 1), Head(26)

    def forward(self, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.c(self.a(image) + self.b(features)[:, :, None, None])
        return self.map(x), self.head(x)


@JOINS(IMAGE)
class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.boxes, self.head = cbr(3, 18), cbr(18, 26), conv(26, 4, 1), Head(26)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        x = self.b(self.a(x))
        return {"logits": self.head(x), "maps": [self.boxes(x), self.boxes(F.avg_pool2d(x, 2))]}


@JOINS(floats((2, 3, 20, 14), style=(2, 7)))
class KeywordFilm(nn.Module):
    """Scale and shift of every channel come from a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.film = conv(3, 18), conv(18, 26), nn.Linear(7, 36)
        self.norm, self.head = nn.BatchNorm2d(18, affine=False), Head(26)

    def forward(self, image: Tensor, *, style: Tensor) -> Tensor:
        scale, shift = self.film(style)[:, :, None, None].chunk(2, 1)
        return self.head(F.relu(self.b(F.relu(self.norm(self.a(image)) * (1 + scale) + shift))))


@JOINS(floats((2, 3, 20, 14), (2, 7)))
class HyperConv(nn.Module):
    """The weights of a 1x1 convolution are another layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.code, self.make = cbr(3, 16), nn.Linear(7, 24), nn.Linear(24, 16 * 18)
        self.b, self.head = cbr(18, 26), Head(26)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        x = self.a(image)
        weight = self.make(F.relu(self.code(features))).view(x.shape[0], 18, x.shape[1])
        return self.head(self.b(torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])))


@JOINS(IMAGE)
class ProductOfBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = cbr(3, 16), conv(16, 24), conv(16, 24, 1), conv(24, 20)
        self.head = Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.c(F.relu6(self.a(x)) * torch.tanh(self.b(x)))))


@JOINS(IMAGE)
class BilinearPool(nn.Module):
    """Products of all pairs of channels, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = cbr(3, 16), conv(16, 9), conv(16, 12), nn.Linear(108, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(torch.einsum("bchw,bdhw->bcd", self.a(x), self.b(x)).flatten(1))


@JOINS(IMAGE)
class NonLocal(nn.Module):
    """Attention between places, written with bmm on flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 18, stride=2)
        self.query, self.key, self.value = conv(18, 8, 1), conv(18, 8, 1), conv(18, 12, 1)
        self.out, self.head = conv(12, 18, 1), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = torch.softmax(self.query(x).flatten(2).transpose(1, 2) @ self.key(x).flatten(2), -1)
        y = (self.value(x).flatten(2) @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])
        return self.head(x + self.out(y))


@JOINS(IMAGE)
class ChannelAffinity(nn.Module):
    """DANet: every channel attends to every channel by their products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.out, self.head = cbr(3, 16), cbr(16, 18), cbr(18, 36), Head(36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x))
        flat = x.flatten(2)
        weights = torch.softmax(flat @ flat.transpose(1, 2) / 50, -1)
        return self.head(self.out((weights @ flat).view_as(x) + x))


@JOINS(IMAGE)
class UnfoldPatches(nn.Module):
    """im2col: kernel positions lie beside the channels in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 9), nn.Linear(36, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(self.a(x), 2, stride=2).transpose(1, 2)
        return self.c(F.relu(self.b(x)).mean(1))


@JOINS(IMAGE)
class SpaceToDepthPermute(nn.Module):
    """Patches by view and permute, as einops writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 9), nn.Linear(36, 26), nn.Linear(26, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = (x := self.a(x)).shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 4 * c)
        return self.c(F.gelu(self.b(x)).mean(1))


@JOINS(IMAGE)
class StochasticEval(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 16), nn.Dropout2d(0.3), cbr(16, 24), nn.AlphaDropout(0.2), nn.RReLU(), Head(24)
        )


@JOINS(IMAGE)
class MixedActivations(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.SiLU(), conv(16, 24), nn.Mish(), conv(24, 28), nn.Softplus())
        self.extend(
            [conv(28, 22), nn.ELU(), conv(22, 26), nn.Hardtanh(), conv(26, 18), nn.Sigmoid(), Head(18)]
        )


@JOINS(IMAGE)
class OctaveConv(nn.Module):
    """Two resolutions that exchange their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv(3, 16), conv(3, 12)
        self.hh, self.hl, self.lh, self.ll = conv(16, 18), conv(16, 14), conv(12, 18), conv(12, 14)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        high, low = F.relu(self.high(x)), F.relu(self.low(F.avg_pool2d(x, 2)))
        top = F.relu(self.hh(high) + F.interpolate(self.lh(low), scale_factor=2))
        bottom = F.relu(self.ll(low) + self.hl(F.avg_pool2d(high, 2)))
        return self.fc(torch.cat([top.mean((2, 3)), bottom.mean((2, 3))], 1))


@JOINS(IMAGE)
class RawConvWeights(nn.Module):
    """F.conv2d and F.batch_norm on parameters and buffers of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Parameter(torch.randn(16, 3, 3, 3)),
            nn.Parameter(torch.randn(24, 16, 3, 3)),
        )
        self.bias, self.gain = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.ones(16))
        self.register_buffer("running_mean", torch.zeros(16))
        self.register_buffer("running_var", torch.ones(16))
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.first, padding=1)
        x = F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.gain))
        return self.head(F.relu(F.conv2d(x, self.second, self.bias, padding=1)))


@JOINS(IMAGE)
class StandardizedConv(nn.Module):
    """Weights are standardised over their inputs before each use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 16), conv(16, 24), conv(24, 30), Head(30)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        x = F.conv2d(self.a(x), (weight - mean) / (std + 1e-5), self.b.bias, padding=1)
        return self.head(F.relu(self.c(F.relu(x))))
