"""Outputs of two networks side by side: how far they are apart, and how far they may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors of nested outputs, of every dtype, in order."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif id(value) not in seen and not isinstance(value, (str, type, nn.Module)):
            seen.add(id(value))
            leaves = _pytree.tree_leaves(value)
            if len(leaves) != 1 or leaves[0] is not value:
                inside: Iterable[Any] = leaves
            elif isinstance(value, Mapping):
                inside = value.values()
            elif isinstance(value, (list, tuple, set)):
                inside = value
            else:
                slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
                inside = [*getattr(value, "__dict__", {}).values(), *(getattr(value, s, None) for s in slots)]
            for part in inside:
                look(part)

    look(outputs)
    return found


def hollow(outputs: Any) -> bool:
    """Whether the numbers of some output are all NaN: then a comparison says nothing of it."""
    return any(t.numel() and bool(t.isnan().all()) for t in tensors_in(outputs))


def difference(expected: Any, found: Any) -> float:
    """Return the largest difference over all outputs, relative to the largest |expected| of each;
    infinite where they have not even the same shapes, or integers or bools that differ."""
    wanted, given = tensors_in(expected), tensors_in(found)
    if len(wanted) != len(given) or any(a.shape != b.shape for a, b in zip(wanted, given, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(wanted, given, strict=True):
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return float("inf")
            continue
        a, b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b))
        a, b = a.detach().double(), b.detach().double()
        same = (a == b) | (a.isnan() & b.isnan())
        off = torch.where(same, 0.0, (a - b).abs())
        if not torch.isfinite(off).all():
            return float("inf")
        finite = a[torch.isfinite(a)]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        worst = max(worst, float(off.max()) / max(scale, 1e-30))
    return worst
