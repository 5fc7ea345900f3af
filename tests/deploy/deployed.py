"""Networks for the tests of deployment: with statistics that are not the default ones, dense or pruned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from secateur.deploy.program.export import Program, program_of
from secateur.models import build_model
from secateur.runtime.runner import execute

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


def numbers(*shape: int, seed: int = 0) -> Tensor:
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


def network(name: str, pruned: float = 0.0) -> tuple[nn.Module, tuple[int, ...]]:
    """Return one of ``NETWORKS`` and the shape of its input without the batch."""
    shape, options = NETWORKS[name]
    return stirred(build_model(name.split(" ")[0], **options), pruned), shape


class Call(nn.Module):
    """A network that is one function, and layers for it."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def off(model: nn.Module, program: Program, *inputs: torch.Tensor) -> float:
    """How far the program's outputs are from the network's, relative to the largest one."""
    with torch.no_grad():
        wanted = model(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = execute(program.graph, program.arrays(), [x.numpy() for x in inputs])
    assert [y.shape for y in found] == [tuple(y.shape) for y in wanted]
    return max(
        float(np.abs(a.numpy() - b).max()) / (float(a.abs().max()) or 1.0)
        for a, b in zip(wanted, found, strict=True)
    )


def ops(program: Program) -> list[str]:
    return [node["op"] for node in program.graph["nodes"]]


def check(function, *shape: int, **layers: nn.Module) -> Program:
    """Make a program of a function on inputs of a shape (batch 2), and compare on batches of 1 and 5."""
    model = stirred(Call(function, **layers))
    program = program_of(model, numbers(2, *shape))
    for batch in (1, 5):
        assert off(model, program, numbers(batch, *shape, seed=batch)) < 1e-5
    return program
