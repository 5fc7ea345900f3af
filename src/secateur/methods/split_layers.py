"""Layers over a model's channels and a branch's, as ``secateur.methods.widening.Widened`` runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.copying import copied

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class SplitConv(nn.Module):
    """A convolution over positions between two matrices over channels: ``mix`` makes of what it reads,
    own channels and branch, what the model's own weight reads; ``spread`` adds the branch to what it makes.

    One convolution by the product of the three has (1 + ratio)^2 times the model's multiply-adds; two
    1x1 ones around the model's own have little more than 1. Either matrix may be empty: the identity.
    """

    mix: Tensor
    spread: Tensor

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv: Any = conv
        self.mix = self.spread = torch.empty(0)  # functional_call puts tensors here

    def forward(self, x: Tensor) -> Tensor:
        x = self._apply_matrix(self.mix, x)
        return self._apply_matrix(self.spread, self.conv(x))

    def _apply_matrix(self, matrix: Tensor, x: Tensor) -> Tensor:
        if not matrix.numel():
            return x
        positions = len(self.conv.kernel_size)
        return _CONVOLUTIONS[positions - 1](x, matrix.reshape(*matrix.shape, *(1,) * positions))


class SplitNorm(nn.Module):
    """A batch norm over a model's channels and a branch's, of which only the branch's learns statistics
    while ``frozen``."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Any, width: int) -> None:
        super().__init__()
        self.own, self.eps, self.momentum, self.frozen = norm.num_features, norm.eps, norm.momentum, False
        self.training = norm.training
        self.weight = self.bias = None
        if norm.affine:
            self.weight = nn.Parameter(norm.weight.detach().clone())
            self.bias = nn.Parameter(norm.bias.detach().clone())
        for name, extra in (("running_mean", 0.0), ("running_var", 1.0)):
            old = getattr(norm, name)
            wide = None if old is None else torch.cat([old, old.new_full((width,), extra)])
            self.register_buffer(name, wide)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.frozen and self.training):
            return self._part(x, slice(None), self.training)
        own = self._part(x[:, : self.own], slice(self.own), False)
        branch = self._part(x[:, self.own :], slice(self.own, None), True)
        return torch.cat([own, branch], 1)

    def _part(self, x: Tensor, part: slice, training: bool) -> Tensor:
        mean, var, weight, bias = (
            None if t is None else t[part]
            for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, var, weight, bias, training or mean is None, self.momentum, self.eps)

    def joined(self, norm: nn.Module) -> nn.Module:
        """Return an ordinary norm of the class of ``norm`` over all channels."""
        whole: Any = copied(norm)
        for name in ("running_mean", "running_var"):
            if getattr(self, name) is not None:
                whole._buffers[name] = getattr(self, name).clone()
        return whole
