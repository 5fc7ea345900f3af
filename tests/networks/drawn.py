"""Numbers that are the same each time, and norms whose statistics are not the default ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stirred(model: nn.Module, pruned: float = 0.0, seed: int = 0) -> nn.Module:
    """Draw every norm's weights (of both signs) and statistics, and zero a share of the layers' weights."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            if module.affine:
                module.weight.uniform_(-1.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and pruned:
            module.weight[torch.rand(module.weight.shape, generator=generator) < pruned] = 0
    return model.eval()


@torch.no_grad()
def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64, its norms as if it had been trained: none turns a channel over."""
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


ROWS = randn(6, 3, seed=6)
IMAGES = randn(2, 3, 8, 8, seed=7)
SEQUENCE = randn(2, 5, 7, seed=8)


class Cancelling(nn.Module):
    """Nearly all of what it adds up cancels out: rounding is much of what is left."""

    def __init__(self, size: int) -> None:
        super().__init__()
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        self.first, self.small = nn.Linear(size, 64, bias=False), nn.Linear(size, 64, bias=False)
        self.second = nn.Linear(size, 64, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(300 * numbers(64, size, seed=1))
            self.second.weight.copy_(self.first.weight[:, order])
            self.small.weight.copy_(numbers(64, size, seed=2))
        self.register_buffer("order", order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) - self.second(x[:, self.order]) + self.small(x)
