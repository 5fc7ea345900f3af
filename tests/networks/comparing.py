"""Two networks, or one before and after: how far apart they are, and what stayed as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.compare import tensors_in


def wide(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, where comparisons are exact."""
    return model.double().eval()


@torch.no_grad()
def error(model: nn.Module, small: nn.Module, *draws: Any, **kwargs: Any) -> float:
    """The largest difference of all outputs on all draws of inputs."""
    worst = 0.0
    for draw in draws:
        args = draw if isinstance(draw, tuple) else (draw,)
        pairs = zip(tensors_in(model(*args, **kwargs)), tensors_in(small(*args, **kwargs)), strict=True)
        worst = max([worst, *(float((a - b).abs().max()) for a, b in pairs)])
    return worst


def apart(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference in eval mode."""
    return error(one.eval(), other.eval(), x)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return same(model.state_dict(), before)
