"""Networks whose units have norms that are given, and which of them went."""

from __future__ import annotations

import torch
from torch import nn

import secateur as sc

X = torch.zeros(2, 4)


def ranked(first: list[float], second: list[float]) -> nn.Sequential:
    """A network whose units have the given L2 norms: hidden layers of these sizes."""
    net = nn.Sequential(
        nn.Linear(4, len(first)),
        nn.ReLU(),
        nn.Linear(len(first), len(second)),
        nn.ReLU(),
        nn.Linear(len(second), 3),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
        for layer, norms in ((net[0], first), (net[2], second)):
            layer.weight.fill_(layer.in_features**-0.5)
            layer.weight.mul_(torch.tensor(norms)[:, None])
    return net


def standard() -> nn.Sequential:
    return ranked([5, 1, 4, 2, 3, 6], [1.5, 3.5, 2.5, 9, 8, 7, 6.5, 4.5])


def pruned(net: nn.Module, budget, criterion=None, **options):
    """The units that went, by group, and the masks."""
    structure = options.pop("structure", None) or sc.trace(net, X)
    masks = sc.prune(net, criterion or sc.L2Norm(), budget, structure=structure, **options)
    return gone(net, structure), masks


def gone(net: nn.Module, structure: sc.Structure) -> list[list[int]]:
    found = []
    for group in structure.groups.values():
        bias = next(part for part in group.slices if part.name.endswith("bias"))
        found.append(torch.where(net.get_parameter(bias.name) == 0)[0].tolist())
    return found
