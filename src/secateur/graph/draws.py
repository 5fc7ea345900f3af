"""Other inputs and other weights of the same kind: numbers, sizes and dtypes drawn anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree


def as_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Return nested arguments with their floating-point tensors in ``dtype``, complex ones in its like."""
    return _pytree.tree_map_only(Tensor, lambda t: _cast(t, dtype), value)


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return ``model``, changed in place, with its parameters and buffers as ``as_dtype`` would have them."""
    return model._apply(lambda t: _cast(t, dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def redrawn(value: Any, generator: torch.Generator) -> Any:
    """Return nested arguments with other numbers: of the same scale, or integers in the range that the
    examples have at each place: what stands beside each other may index tables of different sizes."""

    def new(leaf: Tensor) -> Tensor:
        if not leaf.numel() or leaf.dtype == torch.bool:
            return leaf
        if leaf.is_complex():
            return torch.view_as_complex(new(torch.view_as_real(leaf.resolve_conj())))
        if not leaf.is_floating_point():
            examples = leaf if leaf.dim() > 1 else leaf.flatten()
            low, high = (end(0, keepdim=leaf.dim() > 1).long() for end in (examples.amin, examples.amax))
            low = low.clamp(max=0)
            share = torch.rand(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
            return torch.minimum(low + (share * (high - low + 1)).long(), high).to(leaf)
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
        deviation = leaf.std() if leaf.numel() > 1 else leaf.abs().mean()
        return leaf.mean() + noise * deviation.clamp(min=1e-3)

    return _pytree.tree_map_only(Tensor, new, value)


def resized(value: Any, size: int, other: int) -> Any:
    """Return nested arguments with each dim of ``size`` cut, or repeated from its start, to ``other``."""

    def new(leaf: Any) -> Any:
        for dim in range(leaf.dim()) if isinstance(leaf, Tensor) else ():
            if leaf.shape[dim] == size:
                leaf = leaf.index_select(dim, torch.arange(other, device=leaf.device) % size)
        return leaf

    return _pytree.tree_map(new, value)


def rebatched(value: Any, batch: int, number: int) -> Any:
    """Return nested arguments with ``number`` examples, taken from the start and over again, in every tensor
    whose first dim is ``batch``."""

    def new(leaf: Tensor) -> Tensor:
        has_batch = leaf.dim() and leaf.shape[0] == batch
        return leaf.index_select(0, torch.arange(number, device=leaf.device) % batch) if has_batch else leaf

    return _pytree.tree_map_only(Tensor, new, value)


def other_batch(value: Any, batch: int, number: int) -> Any:
    """Return nested arguments with ``number`` examples and other numbers, the same at every call: like the
    example's or, where a tensor is one number all over, normal."""
    generator = torch.Generator().manual_seed(0)

    def new(leaf: Tensor) -> Tensor:
        if leaf.numel() and leaf.is_floating_point() and bool((leaf == leaf.flatten()[0]).all()):
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        return redrawn(leaf, generator)

    return _pytree.tree_map_only(Tensor, new, rebatched(value, batch, number))


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Multiply every parameter by random numbers of both signs and every running variance by
    positive ones, in place: zeros stay zeros, and nothing else stays what it was."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            factor = torch.rand(parameter.shape, generator=generator) + 0.5
            sign = torch.randint(0, 2, parameter.shape, generator=generator, dtype=torch.int8) * 2 - 1
            if parameter.dim() < 2:
                sign = sign.abs()  # scales of norms keep their sign, as a variance must
            parameter.mul_(factor.mul_(sign).to(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")) and buffer.is_floating_point():
            buffer.mul_((torch.rand(buffer.shape, generator=generator) + 0.5).to(buffer))


@torch.no_grad()
def rescale(model: nn.Module) -> None:
    """Give every weight matrix the size at which a signal neither dies nor grows (He et al., 2015), in
    place: what reaches an output as less than its rounding is equal whatever it is."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dim() > 1:
            squares = parameter.square().sum()
            if squares > 0 and torch.isfinite(squares):
                parameter.mul_((2 * len(parameter) / squares).sqrt())
