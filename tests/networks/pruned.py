"""Networks that lose units, or single weights at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import secateur as sc

from .comparing import wide


def halved(net: nn.Module, x: Any, share: float = 0.5, **options: Any) -> tuple[sc.Structure, sc.Masks]:
    """Prune a share of each group of a network in float64, of those too that its modules cannot lose; return
    its structure and its masks."""
    structure, options = sc.trace(wide(net), x), {"removable_only": False} | options
    return structure, sc.prune(net, sc.L2Norm(), sc.Uniform(share), structure=structure, **options)


@torch.no_grad()
def kill(net: nn.Sequential, layer: int, units: list[int]) -> None:
    """Zero units of a layer of an MLP, what they read and what reads them."""
    net[layer].weight[units] = 0
    net[layer].bias[units] = 0
    net[layer + 2].weight[:, units] = 0


@torch.no_grad()
def sprinkle(net: nn.Module, zeros: float, seed: int) -> nn.Module:
    """Zero weights, and now and then all of a neuron's, at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.mul_(torch.rand(parameter.shape, generator=generator) >= zeros)
        rows = torch.rand(parameter.shape[0], generator=generator) < zeros / 3
        parameter[rows] = 0
    return net
