"""How far off a network's own float32 is, and so how far off what computes the same may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import ModelError
from secateur.graph.compare import TOLERANCE, difference
from secateur.graph.draws import as_dtype, in_dtype
from secateur.numeric import is_real
from secateur.running import run_once

_MULTIPLE = 16  # of the rounding: another order of the same sums is off by as much, rarely by many times it
_LARGEST = 0.01  # beyond that a comparison says little; who knows better says so


@dataclass(frozen=True)
class Rounding:
    """``own``: the largest difference of the network in float32 from itself in float64, relative to the
    largest output; None where it does not run in float64. ``allowed``: how far off another may be."""

    own: float | None
    allowed: float


def rounding(model: nn.Module, calls: Iterable[tuple[Any, Any]], tolerance: float | None) -> Rounding:
    """Measure a float32 network on calls, each ((args, kwargs), its outputs). What is allowed is
    ``tolerance``, or a multiple of what was measured, 1e-4 or more."""
    if tolerance is not None and not (is_real(tolerance) and tolerance > 0):
        raise ModelError(f"tolerance={tolerance!r}; a positive share of the largest output is right")
    own: float | None = None
    try:
        wide = in_dtype(copied(model), torch.float64)
        for inputs, outputs in calls:
            args, kwargs = as_dtype(inputs, torch.float64)
            own = max(own or 0.0, difference(run_once(wide, args, kwargs=kwargs), outputs))
    except ModelError:  # float32 is written into its forward
        own = None
    if own is not None and not math.isfinite(own):  # whole numbers that differ, say
        own = None
    measured = min(_MULTIPLE * (own or 0.0), _LARGEST)
    return Rounding(own, max(measured, TOLERANCE[torch.float32]) if tolerance is None else float(tolerance))
