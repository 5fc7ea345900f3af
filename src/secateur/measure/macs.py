"""Multiply-adds of one forward pass, dense and effective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.measure.running import as_written, run_once


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one forward pass: ``dense``, ``effective`` (zero weights skipped), and the
    dense ones of each layer by module name. Matrix products, convolutions and attention count."""

    dense: int
    effective: int
    layers: dict[str, int]


def count_macs(model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Macs:
    """Count the multiply-adds of ``model`` on ``example_inputs`` (and ``kwargs``), in eval mode.

    The effective count scales each Linear and Conv layer by the share of its weights that are not
    zero, which is exact for both; everything else counts in full.
    """
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator hides the products inside
    try:
        with (
            as_written(),
            _no_gradients(model),
            sdpa_kernel(SDPBackend.MATH),
        ):  # so does a fused attention kernel on the CPU
            run_once(model, example_inputs, counter, kwargs=kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    dense = counter.get_total_flops() // 2
    root = type(model).__name__
    layers: dict[str, int] = {}
    saved = 0.0
    flops = counter.get_flop_counts()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if any(module.children()) or not isinstance(weight, torch.Tensor):
            continue
        counts = flops.get(f"{root}.{name}" if name else root, {})
        macs = sum(counts.values()) // 2
        if macs:
            layers[name] = macs
            saved += macs * (1 - int(torch.count_nonzero(weight.detach())) / weight.numel())
    return Macs(dense, round(dense - saved), layers)


@contextmanager
def _no_gradients(model: nn.Module) -> Iterator[None]:
    """torch's counter fails on a parameter that is itself the input of a module and wants a gradient."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
