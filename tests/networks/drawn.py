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
