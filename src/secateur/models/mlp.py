"""Multilayer perceptrons: the sources' and a small one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models.options import check_counts


class MLP(nn.Module):
    """Linear layers of the given widths with ReLU between them; inputs are flattened."""

    def __init__(self, widths: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def tabular_256(features: int = 10) -> nn.Module:
    """features-256-1 for two classes; its one output is the logit of class 1 (S3's network)."""
    check_counts(features=features)
    return MLP([features, 256, 1])


def fashion_mlp(classes: int = 10) -> nn.Module:
    """784-1000-1000-500-200-10 without biases: 2,386,000 weights (S4's network)."""
    check_counts(classes=classes)
    return MLP([784, 1000, 1000, 500, 200, classes], bias=False)


def digits_mlp(hidden: int = 128, classes: int = 10) -> nn.Module:
    """64-hidden-hidden-10 for the 8 x 8 digits: 26,122 parameters at 128."""
    check_counts(hidden=hidden, classes=classes)
    return MLP([64, hidden, hidden, classes])


def mlp(features: int = 10, hidden: Sequence[int] = (64, 64), outputs: int = 1) -> nn.Module:
    """features-64-64-1 with ReLU, or other widths: for tables of numbers, classes or values."""
    if not isinstance(hidden, (list, tuple)) or not hidden:
        raise ModelError(f"hidden is {hidden!r}; it lists the layers' neurons, like [64, 64]")
    check_counts(
        features=features, outputs=outputs, **{f"hidden[{i}]": count for i, count in enumerate(hidden)}
    )
    return MLP([features, *hidden, outputs])
