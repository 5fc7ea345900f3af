"""Networks to grow branches beside, with norms whose statistics are no default, and steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.models import build_model


class Residual(nn.Module):
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


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64, its norms as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model


NETS = {
    "vgg-16-bn": (lambda: build_model("vgg-16-bn", width=0.125), (4, 3, 32, 32)),
    "resnet-20": (lambda: build_model("resnet-20", width=0.5), (2, 3, 32, 32)),
    "resnet-20 conv": (lambda: build_model("resnet-20", width=0.5, shortcut="conv"), (2, 3, 32, 32)),
    "lenet-300-100": (lambda: build_model("lenet-300-100"), (5, 1, 28, 28)),
    "convnet-25": (lambda: build_model("convnet-25", batch_norm=True), (4, 3, 25, 25)),
    "residual": (Residual, (5, 3, 9, 9)),
    "plain": (Plain, (6, 2, 6, 6)),
}


def net(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETS[name]
    torch.manual_seed(0)
    return lived_in(make()), randn(*shape)


def trained(network: nn.Module, x: Tensor, steps: int = 2, lr: float = 0.05) -> None:
    """Steps of everything that is trained, towards outputs of no meaning."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr)
    network.train()
    for _ in range(steps):
        network(x).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    network.eval()
