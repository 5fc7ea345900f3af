"""Low-rank adapters that keep a mask: few numbers are trained, and what is merged is as sparse as before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.errors import ModelError
from secateur.graph.names import canonical_modules
from secateur.pruning.masks import Masks
from secateur.running import seeded
from secateur.structure.layers import layer_view


class _Adapted(nn.Module):
    """(W + B A) * mask of a weight W, computed in float32 at least."""

    mask: Tensor | None

    def __init__(self, weight: Tensor, rank: int, mask: Tensor | None) -> None:
        super().__init__()
        wide = torch.promote_types(weight.dtype, torch.float32)
        rank = min(rank, *weight.shape)
        drawn = torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5  # alike on every device
        self.a = nn.Parameter(drawn.to(weight.device, wide))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device, dtype=wide))
        self.register_buffer("mask", None if mask is None else mask.to(weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        merged = (weight + self.b @ self.a).to(weight.dtype)
        return merged if self.mask is None else merged * self.mask


@contextmanager
def adapted(work: nn.Module, rank: int, masks: Masks | None) -> Iterator[Masks | None]:
    """Train adapters in the place of a network's Linear weights inside the block, and merge them at its end.

    Every other matrix is frozen meanwhile; biases, norms' scales and what else has one dim are trained. It
    yields the masks that an optimizer has still to hold, of those.

    Raises ModelError where no Linear weight is trained.
    """
    uses = Counter(id(p) for _, module in canonical_modules(work) for p in module._parameters.values())
    kept: Mapping[str, Tensor] = {} if masks is None else masks.kept
    layers = {
        f"{path}.{name}".lstrip("."): (module, name)
        for path, module in canonical_modules(work)
        if (name := _of_rows(module)) and uses[id(module._parameters[name])] == 1
    }
    if not layers:
        raise ModelError(f"{type(work).__name__}: rank adapts the weights of Linear layers, and trains none")
    frozen = [p for p in work.parameters() if p.requires_grad and p.dim() > 1]
    small = {name: mask for name, mask in kept.items() if mask.dim() < 2}
    for parameter in frozen:
        parameter.requires_grad_(False)
    with seeded(0):
        for full, (module, name) in layers.items():
            adapter = _Adapted(module._parameters[name], rank, kept.get(full))  # type: ignore[arg-type]
            parametrize.register_parametrization(module, name, adapter, unsafe=True)
    yield Masks(work, small) if small else None
    for module, name in layers.values():
        parametrize.remove_parametrizations(module, name)
    for parameter in frozen:
        parameter.requires_grad_(True)


def _of_rows(module: nn.Module) -> str:
    """Return the name of the weight of a Linear layer (transformers' Conv1D is one) that is trained."""
    view = layer_view(module)
    if view is None or not view.plain or view.product != "rows" or len(view.weights) != 1:
        return ""
    weight = module._parameters.get(view.weights[0])
    return view.weights[0] if weight is not None and weight.dim() == 2 and weight.requires_grad else ""
