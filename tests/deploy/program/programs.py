"""Programs of networks: made, run, and compared with what PyTorch computes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from networks.drawn import numbers, stirred
from networks.parts import After
from secateur.deploy.program.export import Program, program_of
from secateur.runtime.runner import execute


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
    model = stirred(After(function, **layers))
    program = program_of(model, numbers(2, *shape))
    for batch in (1, 5):
        assert off(model, program, numbers(batch, *shape, seed=batch)) < 1e-5
    return program
