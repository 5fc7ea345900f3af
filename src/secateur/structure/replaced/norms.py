"""Norms over a residual stream that loses channels: which ones surgery can keep exact, and how.

Removed channels hold zero, so that sums over the channels left are still right and only the count is
not. An RMSNorm over N' of N channels takes weight * sqrt(N/N') and eps * N/N'; a LayerNorm becomes a
``PrunedLayerNorm``, which still divides by N.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

LAYER, RMS, RMS_PLUS_ONE = "layer", "rms", "rms, 1 + weight"
_EPS = ("variance_epsilon", "eps", "epsilon")


class PrunedLayerNorm(nn.LayerNorm):
    """An ``nn.LayerNorm`` over ``full_size`` channels of which those that were zero have gone: same
    parameters by name, same results. Made by ``become_pruned_norm``, not built."""

    full_size: int

    def forward(self, input: Tensor) -> Tensor:
        if input.is_nested:  # as nn.TransformerEncoder makes padded sequences; few operators take such
            return torch.nested.as_nested_tensor(
                [self.forward(row) for row in input.unbind()], layout=input.layout
            )
        half = input.dtype in (torch.float16, torch.bfloat16)
        x = input.float() if half else input
        mean = x.sum(-1, keepdim=True) / self.full_size
        centred = x - mean
        # Each channel that has gone held zero, and was off by the mean.
        pruned = (self.full_size - x.shape[-1]) * mean.square()
        variance = (centred.square().sum(-1, keepdim=True) + pruned) / self.full_size
        y = (centred * torch.rsqrt(variance + self.eps)).to(input.dtype) * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, full_size={self.full_size}"


def become_pruned_norm(module: nn.LayerNorm, full_size: int) -> None:
    """Turn a module whose tensors have been cut, or will be, into a ``PrunedLayerNorm``, in place;
    one that is one already keeps the size that it had at first."""
    if not isinstance(module, PrunedLayerNorm):
        module.__class__ = PrunedLayerNorm
        module.__dict__["full_size"] = full_size


def kind_of(module: nn.Module | None) -> str | None:
    """Return what a module normalises like over its last dim, if surgery can keep that exact.

    ``nn.LayerNorm`` and ``nn.RMSNorm`` with a weight over one dim are known. Another module (Llama's,
    T5's, Gemma's norm) is tried out: it must have a weight of one dim and an eps, and give what the
    formula gives at two sizes.
    """
    weight = None if module is None else module._parameters.get("weight")
    if module is None or weight is None or weight.dim() != 1:
        return None
    if type(module) in (nn.LayerNorm, PrunedLayerNorm):
        return LAYER
    if type(module) is nn.RMSNorm:
        return RMS
    name = eps_name(module)
    if name is None or isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or len(weight) < 2:
        return None
    try:
        kinds = {_tried(module, weight, name, size) for size in (len(weight), len(weight) - 1)}
    except Exception:  # whatever somebody's forward raises on what it did not expect
        return None
    return kinds.pop() if len(kinds) == 1 else None


@torch.no_grad()
def _tried(module: nn.Module, weight: Tensor, name: str, size: int) -> str | None:
    generator = torch.Generator().manual_seed(size)
    drawn = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
    x = torch.randn(3, 5, size, generator=generator, dtype=torch.float64, device="cpu")
    probe = copy.deepcopy(module, {id(weight): nn.Parameter(drawn, requires_grad=False)})
    vars(probe)[name] = 0.5  # large enough to show where it goes
    found = probe.forward(x.clone())
    base = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.5)
    for kind, expected in ((RMS, drawn * base), (RMS_PLUS_ONE, (1 + drawn) * base)):
        if isinstance(found, Tensor) and torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5):
            return kind
    return None


def eps_name(module: nn.Module) -> str | None:
    """Return the name of the eps of an RMSNorm: a module with one weight of one dim, and nothing else."""
    weight = module._parameters.get("weight")
    alone = weight is not None and weight.dim() == 1 and len(list(module.parameters())) == 1
    if not alone or module._modules or module._buffers:
        return None
    for name in _EPS:
        if name in vars(module) and is_eps(vars(module)[name], module):
            return name
    return None


def is_eps(value: Any, module: nn.Module) -> bool:
    """Whether a value can be the eps of a module: a number, or None in torch's own RMSNorm."""
    if value is None:
        return isinstance(module, nn.RMSNorm)
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


@torch.no_grad()
def repair(module: nn.Module, before: int, scaled: set[int]) -> None:
    """Make a norm that has just lost channels, of ``before``, exact again, in place; ``scaled``: the
    ids of the weights that are done (tied ones are scaled once)."""
    kind = kind_of(module)
    if kind is None:
        return
    if kind == LAYER:
        become_pruned_norm(module, before)  # type: ignore[arg-type]
        return
    weight, name = module._parameters["weight"], eps_name(module)
    assert weight is not None
    assert name is not None
    ratio = before / len(weight)
    eps = vars(module)[name]
    vars(module)[name] = (torch.finfo(weight.dtype).eps if eps is None else eps) * ratio
    if id(weight) not in scaled:
        scaled.add(id(weight))
        shift = 1.0 if kind == RMS_PLUS_ONE else 0.0
        weight.copy_((weight.double() + shift) * math.sqrt(ratio) - shift)
