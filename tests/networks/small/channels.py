"""Small convolutional networks: what is done to channels between the convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Zoo
from .conv import CLASSES, IMAGE, Head, cbr, conv

CHANNELS = Zoo()


@CHANNELS(IMAGE)
class UnevenSplit(nn.Module):
    """Sizes of the split are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [10, 22]
        self.stem, self.a, self.b, self.head = cbr(3, 32), cbr(10, 12), cbr(22, 18), Head(30)

    def forward(self, x: Tensor) -> Tensor:
        small, large = torch.split(self.stem(x), self.sizes, 1)
        return self.head(torch.cat([self.b(large), self.a(small)], 1))


@CHANNELS(IMAGE)
class SliceOfShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = cbr(3, 32), cbr(16, 18), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        return self.head(self.a(x[:, :half] * torch.sigmoid(x[:, half:])))


@CHANNELS(IMAGE)
class SliceOfAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near = 12
        self.stem, self.a, self.head = cbr(3, 30), cbr(12, 16), Head(34)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.a(x[:, : self.near]), x[:, self.near :]], 1))


@CHANNELS(IMAGE)
class PartialConv(nn.Module):
    """FasterNet: a convolution over the first quarter of the channels only."""

    def __init__(self) -> None:
        super().__init__()
        self.part = 6
        self.stem, self.conv, self.mix = cbr(3, 24), conv(6, 6, bias=False), cbr(24, 40, 1)
        self.back, self.head = conv(40, 24, 1), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, rest = torch.split(x, [self.part, x.shape[1] - self.part], 1)
        return self.head(x + self.back(self.mix(torch.cat([self.conv(first), rest], 1))))


@CHANNELS(IMAGE)
class TemporalShift(nn.Module):
    """An eighth of the channels is shifted one way, an eighth the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = cbr(3, 24), cbr(24, 18), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        fold = x.shape[1] // 8
        left, right, still = x[:, :fold], x[:, fold : 2 * fold], x[:, 2 * fold :]
        x = torch.cat([F.pad(left[..., 1:], (0, 1)), F.pad(right[..., :-1], (1, 0)), still], 1)
        return self.head(self.a(x))


@CHANNELS(IMAGE)
class FlattenNchw(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), cbr(12, 16, stride=2), nn.Flatten(), nn.Linear(16 * 20, 36))
        self.extend([nn.ReLU(), nn.Linear(36, CLASSES)])


@CHANNELS(IMAGE)
class FlattenNhwc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 12, stride=2), cbr(12, 16, stride=2)
        self.c, self.d = nn.Linear(16 * 20, 36), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).permute(0, 2, 3, 1)
        return self.d(F.relu(self.c(x.reshape(x.shape[0], -1))))


@CHANNELS(IMAGE)
class FlattenOfAttributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = 16 * 20
        self.a, self.b = cbr(3, 12, stride=2), cbr(12, 16, stride=2)
        self.c, self.d = nn.Linear(self.features, 36), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(self.b(self.a(x)).view(-1, self.features))))


@CHANNELS(IMAGE)
class AdaptiveFlatten(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 16), cbr(16, 24, stride=2), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten())
        self.extend([nn.Linear(144, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, CLASSES)])


@CHANNELS(IMAGE)
class AutoencoderReshape(nn.Module):
    """The variational autoencoder: two heads, and a decoder that reshapes a vector into an image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 12, stride=2), cbr(12, 18, stride=2)
        self.mean, self.spread = nn.Linear(18 * 20, 9), nn.Linear(18 * 20, 9)
        self.decode = nn.Linear(9, 16 * 5 * 4)
        self.up, self.out = nn.ConvTranspose2d(16, 13, 4, 2, 1), nn.ConvTranspose2d(13, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.b(self.a(x)).flatten(1)
        mean, spread = self.mean(code), self.spread(code)
        y = F.relu(self.decode(mean + torch.exp(0.5 * spread) * 0.1))
        return self.out(F.relu(self.up(y.view(-1, 16, 5, 4)))), mean, spread


@CHANNELS(IMAGE)
class PreluChannels(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 16), nn.PReLU(16), conv(16, 24), nn.PReLU(24), conv(24, 30), nn.PReLU(), Head(30)
        )


@CHANNELS(IMAGE)
class HighwayGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.change, self.gate, self.head = cbr(3, 18), conv(18, 18), conv(18, 18, 1), Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.gate(x))
        return self.head(gate * F.relu(self.change(x)) + (1 - gate) * x)


@CHANNELS(IMAGE)
class AttentionCBAM(nn.Module):
    """Attention over channels, then over places by the mean and maximum of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 24)
        self.mlp = nn.Sequential(conv(24, 8, 1, bias=False), nn.ReLU(), conv(8, 24, 1, bias=False))
        self.place, self.last, self.head = conv(2, 1, 7, bias=False), cbr(24, 36), Head(36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.head(self.last(x * torch.sigmoid(self.place(both))))


@CHANNELS(IMAGE)
class EfficientChannelAttention(nn.Module):
    """A 1d convolution slides over the channels, which binds neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slide = cbr(3, 24), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.b, self.c, self.head = cbr(24, 36), cbr(36, 28), Head(28)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.slide(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
        return self.head(self.c(self.b(x * torch.sigmoid(y.transpose(-1, -2).unsqueeze(-1)))))


@CHANNELS(IMAGE)
class SelectiveKernel(nn.Module):
    """A softmax over two stacked branches weighs them channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 12), cbr(12, 18), cbr(12, 18, padding=2, dilation=2)
        self.down, self.ups = conv(18, 8, 1), nn.ModuleList([conv(8, 18, 1) for _ in range(2)])
        self.last, self.head = cbr(18, 26), Head(26)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.stack([self.a(x), self.b(x)], 1)
        code = F.relu(self.down(both.sum(1).mean((2, 3), keepdim=True)))
        weights = torch.softmax(torch.stack([up(code) for up in self.ups], 1), 1)
        return self.head(self.last((both * weights).sum(1)))


@CHANNELS(IMAGE)
class SoftmaxChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 16), conv(16, 12), cbr(12, 24), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.softmax(self.b(self.a(x)), 1)))


@CHANNELS(IMAGE)
class GroupNormNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 24), nn.GroupNorm(4, 24), nn.ReLU(), conv(24, 36), nn.GroupNorm(6, 36), Head(36)
        )


@CHANNELS(IMAGE)
class InstanceNormNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), conv(16, 24))
        self.extend([nn.InstanceNorm2d(24), nn.LeakyReLU(0.1), conv(24, 30), Head(30)])


@CHANNELS(IMAGE)
class LayerNormChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = conv(3, 16), nn.LayerNorm(16), cbr(16, 28), conv(28, 22)
        self.head = Head(22)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(F.relu(self.c(self.b(x))))


@CHANNELS(IMAGE)
class LocalResponseNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.LocalResponseNorm(5), cbr(16, 28), conv(28, 22), nn.ReLU(), Head(22))


@CHANNELS(IMAGE)
class ConvnextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = conv(3, 24, 4, stride=4, padding=0), conv(24, 24, 7, groups=24)
        self.norm, self.up, self.down = nn.LayerNorm(24, 1e-6), nn.Linear(24, 72), nn.Linear(72, 24)
        self.scale, self.head = nn.Parameter(torch.full((24,), 0.3)), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


@CHANNELS(IMAGE)
class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2: norms over places, divided by their mean over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.down = cbr(3, 18), nn.Linear(18, 40), nn.Linear(40, 18)
        self.b, self.gamma, self.beta = (
            cbr(18, 26),
            *(nn.Parameter(torch.rand(1, 1, 1, 40)) for _ in range(2)),
        )
        self.last, self.head = conv(26, 22), Head(22)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = F.gelu(self.up(x.permute(0, 2, 3, 1)))
        size = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        y = self.gamma * (y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta + y
        return self.head(self.last(self.b(x + self.down(y).permute(0, 3, 1, 2))))


@CHANNELS(IMAGE)
class LayerScaleBuffer(nn.Module):
    """A parameter and buffers broadcast over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 24), Head(24)
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1) + 0.5)
        self.register_buffer("mean", torch.randn(1, 24, 1, 1))
        self.register_buffer("std", torch.rand(24) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x) * self.scale))
        return self.head(F.relu((x - self.mean) / self.std[:, None, None]))


@CHANNELS(IMAGE)
class PadRollFlip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 24, padding=0), conv(24, 20), Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.a(x), (1, 1, 2, 0), mode="reflect")
        x = torch.roll(self.b(x), (1, -2), (2, 3)).flip(3)
        return self.head(F.relu(self.c(F.pad(x, (1, 0, 0, 2)))))


@CHANNELS(IMAGE)
class RollFlipChannels(nn.Module):
    """The order of the channels changes, so that what is added up are different indices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 16), conv(16, 24), conv(24, 20), Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).flip(1))
        return self.head(F.relu(self.c(F.relu(x) + 0.5 * torch.roll(x, 12, 1))))


@CHANNELS(IMAGE)
class PadShortcut(nn.Module):
    """The parameter-free shortcut of ResNet for CIFAR: strided places, zeros for new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = cbr(3, 16), cbr(16, 28, stride=2), conv(28, 24), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.b(self.a(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))
