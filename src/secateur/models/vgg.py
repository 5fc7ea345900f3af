"""VGG-16 with batch norm for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.models.options import check_counts, check_number

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG16BN(nn.Module):
    """13 3 x 3 convs with batch norm and ReLU, five poolings (the 0s), one linear layer; 32 x 32 images."""

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        check_counts(classes=classes)
        check_number("width", width, 0.01, 16)
        layers: list[nn.Module] = []
        channels = 3
        for base in _WIDTHS:
            if base == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            out = max(1, round(base * width))
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg_16_bn(classes: int = 10, width: float = 1.0) -> nn.Module:
    """VGG-16 with batch norm for 32 x 32 images, every layer's width times ``width`` (S2's network)."""
    return VGG16BN(classes, width)
