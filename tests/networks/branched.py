"""Networks to grow branches beside, by name, and steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.models import build_model

from .drawn import lived_in, randn
from .plain import Plain
from .residual import Strided

NETS = {
    "vgg-16-bn": (lambda: build_model("vgg-16-bn", width=0.125), (4, 3, 32, 32)),
    "resnet-20": (lambda: build_model("resnet-20", width=0.5), (2, 3, 32, 32)),
    "resnet-20 conv": (lambda: build_model("resnet-20", width=0.5, shortcut="conv"), (2, 3, 32, 32)),
    "lenet-300-100": (lambda: build_model("lenet-300-100"), (5, 1, 28, 28)),
    "convnet-25": (lambda: build_model("convnet-25", batch_norm=True), (4, 3, 25, 25)),
    "residual": (Strided, (5, 3, 9, 9)),
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
