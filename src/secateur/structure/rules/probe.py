"""What no rule says is tried out: does zero stay zero, and are indices treated one by one?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from secateur.graph.calls import Call
from secateur.structure.propagate import Labelled, Walk

_DRAWS = 3


def zeros_stay(walk: Walk, call: Call, zero: set[int]) -> bool:
    """Whether a pointwise operator gives exactly 0 where the operands in ``zero`` (ids of their
    values) are 0, whatever the others hold."""
    if not zero:
        return False
    generator = torch.Generator().manual_seed(0)

    def stand_in(n: fx.Node) -> Any:
        value = walk.values.get(n)
        if not isinstance(value, Labelled):
            return value
        if id(value) in zero:
            return torch.zeros((), dtype=value.dtype)
        if value.dtype == torch.bool:
            return torch.rand((), generator=generator) < 0.5
        if not value.dtype.is_floating_point:
            return torch.randint(1, 5, (), generator=generator).to(value.dtype)
        return torch.randn((), generator=generator).to(value.dtype) * 3

    try:
        results = [call.run(stand_in) for _ in range(2 * _DRAWS)]
    except (RuntimeError, TypeError, ValueError):
        return False
    return all(isinstance(r, Tensor) and bool((r == 0).all()) for r in results)


def carries(walk: Walk, call: Call, source: Labelled, dim: int) -> bool | None:
    """Whether an operator commutes with dropping indices of ``dim``: None where it does not, else
    whether it keeps zeros."""
    out = call.node.meta.get("val")
    if not isinstance(out, Tensor) or out.dim() != len(source.shape) or out.shape[dim] != source.shape[dim]:
        return None
    generator = torch.Generator().manual_seed(0)
    others: dict[fx.Node, Any] = {}
    holder: dict[str, Tensor] = {}

    def stand_in(n: fx.Node) -> Any:
        value = walk.values.get(n)
        if not isinstance(value, Labelled):
            return value
        if value is source:
            return holder["x"].clone()
        if n in walk.constants:
            return walk.constants[n].cpu()
        if n not in others:
            drawn = torch.randn(value.shape, generator=generator)
            others[n] = (drawn if value.dtype.is_floating_point else torch.zeros_like(drawn)).to(value.dtype)
        return others[n]

    def run(x: Tensor) -> Tensor:
        holder["x"] = x
        with torch.no_grad():
            return call.run(stand_in)

    try:
        x = torch.randn(source.shape, generator=generator).to(source.dtype)
        kept = torch.arange(source.shape[dim])[::2]
        whole, part = run(x), run(x.index_select(dim, kept))
        if part.shape != whole.index_select(dim, kept).shape:
            return None
        if not torch.allclose(part, whole.index_select(dim, kept), rtol=1e-4, atol=1e-6):
            return None
        x.index_fill_(dim, kept, 0.0)
        return bool((run(x).index_select(dim, kept) == 0).all())
    except Exception:  # a probe runs operators that nobody has read
        return None
