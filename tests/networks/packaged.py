"""The package's own networks by name, narrow and with stirred norms, and their inputs."""

from __future__ import annotations

from torch import nn

from secateur.models import build_model

from .drawn import stirred

NETWORKS = {
    "lenet-300-100": ((1, 28, 28), {}),
    "lenet-5": ((1, 28, 28), {}),
    "fashion-mlp": ((784,), {}),
    "convnet-25": ((3, 25, 25), {}),
    "convnet-25 with norms": ((3, 25, 25), {"batch_norm": True}),
    "vgg-16-bn": ((3, 32, 32), {"width": 0.25}),
    "resnet-20": ((3, 32, 32), {"width": 0.5}),
    "resnet-20 with convs": ((3, 32, 32), {"width": 0.5, "shortcut": "conv"}),
}


def network(name: str, pruned: float = 0.0) -> tuple[nn.Module, tuple[int, ...]]:
    """Return one of ``NETWORKS`` and the shape of its input without the batch."""
    shape, options = NETWORKS[name]
    return stirred(build_model(name.split(" ")[0], **options), pruned), shape
