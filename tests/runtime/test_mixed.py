"""Programs that the compiled kernels cannot run whole: in pieces, numpy between them, to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.drawn import numbers, stirred
from networks.parts import After
from secateur.deploy.program.export import program_of

pytest.importorskip("numba")

from secateur.runtime.mixed import Mixed
from secateur.runtime.planning import Compiled
from secateur.runtime.runner import execute
from secateur.runtime.workspace import UnsupportedError


class Block(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, size: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.before, self.after, self.heads = nn.LayerNorm(size), nn.LayerNorm(size), heads
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 24), nn.Linear(24, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.after(x))))


def sparse(*layers: nn.Module) -> nn.Sequential:
    """Layers of which one weight in ten is left: what the kernels are for."""
    return stirred(nn.Sequential(*layers), pruned=0.9)


def plain_norms() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm((4, 8)), nn.Tanh())


def recurrent() -> nn.Module:
    return After(lambda m, x: m.o(m.r(x)[0]), r=nn.LSTM(4, 5, batch_first=True), o=nn.Linear(5, 3))


def choices() -> nn.Module:
    return After(lambda m, x: torch.where(x > 0, m.a(x), -1.0) * (x != 0), a=nn.Linear(6, 6))


def a_u() -> nn.Module:
    def forward(m, x):
        down = m.b(F.max_pool2d(m.a(x), 2))
        return m.c(torch.cat([x, F.interpolate(down, scale_factor=2.0)], 1))

    return After(
        forward,
        a=sparse(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()),
        b=sparse(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        c=nn.ConvTranspose2d(9, 2, 2, stride=2),
    )


def gates() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 12, 3), nn.GLU(1), nn.PReLU(6), nn.Softmax(1))


NETWORKS = {
    "attention": (Block, (7, 12)),
    "attention, sparse": (lambda: stirred(Block(), pruned=0.9), (7, 12)),
    "norms of the last dims": (plain_norms, (4, 6)),
    "recurrent": (recurrent, (6, 4)),
    "choices": (choices, (4, 6)),
    "a U": (a_u, (3, 8, 8)),
    "gates over channels": (gates, (4, 9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pieces_compute_what_the_network_does(name):
    make, shape = NETWORKS[name]
    model = make().eval()
    program = program_of(model, numbers(2, *shape))
    tensors = program.arrays()
    with pytest.raises(UnsupportedError):
        Compiled(program.graph, tensors)
    run = Mixed(program.graph, tensors)
    for batch in (1, 5):
        x = numbers(batch, *shape, seed=batch)
        (found,) = run([x.numpy()])
        (plain,) = execute(program.graph, tensors, [x.numpy()])
        with torch.no_grad():
            wanted = model(x).numpy()
        size = np.abs(wanted).max()
        assert np.abs(found - wanted).max() < 1e-5 * size
        assert np.abs(found - plain).max() < 1e-5 * size
    assert len(run([numbers(3, *shape).numpy()])[0]) == 3


def test_sparse_layers_are_what_the_kernels_run():
    pieces = {}
    for name in ("attention", "attention, sparse", "a U"):
        make, shape = NETWORKS[name]
        program = program_of(make().eval(), numbers(2, *shape))
        pieces[name] = [step.__qualname__ for step, _ in Mixed(program.graph, program.arrays()).steps]
    assert not any("_compiled" in step for step in pieces["attention"])
    assert any("_compiled" in step for step in pieces["a U"])
