"""Networks with units and blocks to select from, by name, and steps of a selection."""

from __future__ import annotations

import torch
from torch import nn

from secateur.methods.structure_selection import StructureSelection

from .attention import Encoder, attention
from .drawn import randn
from .plain import mlp, pooled
from .residual import PostActivation, PreActivation, images

NETS = {
    "mlp": (lambda: mlp(5, 7, 8, 3, seed=0).double(), (6, 5)),
    "plain": (pooled, (2, 3, 8, 8)),
    "post": (lambda: images(PostActivation(5), PostActivation(7)), (2, 3, 8, 8)),
    "pre": (lambda: images(PreActivation(5), PreActivation(7)), (2, 3, 8, 8)),
    "encoder": (lambda: nn.Sequential(Encoder(), nn.Linear(12, 3)).double(), (2, 4, 12)),
    "attention": (attention, (2, 4, 5)),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(5, 6, 3, groups=1),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        ).double(),
        (2, 3, 6, 6),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
        ).double(),
        (2, 3, 6, 6),
    ),
}


def selection(name, **options):
    make, shape = NETS[name]
    model, x = make(), randn(*shape)
    return model, x, StructureSelection(model, x, **options)


@torch.no_grad()
def assign(chosen, values):
    """Write factors: by name, or drawn, of both signs, with zeros, where it is None."""
    generator = torch.Generator().manual_seed(3)
    for name, factor in chosen.network.factors.items():
        if values is not None:
            factor.copy_(torch.as_tensor(values.get(name, 1.0)))
        elif len(factor) > 1:
            drawn = torch.randn(factor.shape, generator=generator)
            factor.copy_(drawn.masked_fill(torch.arange(len(factor)) % 3 == 1, 0))
        else:
            factor.fill_(-0.7)


def quadratic(network, x, target=1.0):
    return (network(x) - target).square().mean()


def stepped(chosen, optimizer, loss):
    """One step of the weights and the factors."""
    with chosen.trained(optimizer):
        loss().backward()
        optimizer.step()
