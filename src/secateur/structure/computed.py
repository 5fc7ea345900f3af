"""Weights that are computed from other parameters: by a parametrization, or by a hook of the old weight_norm
and spectral_norm. What stands behind one can be pruned where its zeros are the weight's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.copying import copied


@dataclass(frozen=True)
class Stored:
    """The parameter that a layer's ``weight`` is, or is computed from; ``refused``: why zeros there are no
    zeros of the weight."""

    weight: str
    parameter: nn.Parameter
    refused: str = ""


def behind(module: nn.Module, name: str) -> Iterator[Stored]:
    """Yield the one parameter whose zeros are the zeros of a computed weight, else all with the reason."""
    found = stores(module, name)
    for store, parameter in found.items():
        if _zeros_are_zeros(module, name, store):
            yield Stored(name, parameter)
            return
    for parameter in found.values():
        made = " and ".join(type(p).__name__ for p in _makers(module, name))
        yield Stored(name, parameter, f"its zeros are not those of the weight that {made} makes of it")


def stores(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return the parameters that a weight is computed from; none where it is not."""
    if parametrize.is_parametrized(module, name):
        found = module.parametrizations[name]._parameters.items()  # type: ignore[index]
    else:
        made_of = (f"{name}_g", f"{name}_v", f"{name}_orig")
        found = ((leaf, p) for leaf, p in module._parameters.items() if leaf in made_of)
    return {leaf: parameter for leaf, parameter in found if parameter is not None}


def _makers(module: nn.Module, name: str) -> list[object]:
    """What computes a weight: parametrizations, or hooks that run before the forward."""
    if parametrize.is_parametrized(module, name):
        return list(module.parametrizations[name])  # type: ignore[index,arg-type]
    return [hook for hook in module._forward_pre_hooks.values() if getattr(hook, "name", None) == name]


def computed(module: nn.Module, name: str) -> Tensor:
    """Return a weight as it is now; of a module with hooks that compute it, a copy."""
    if not parametrize.is_parametrized(module, name):
        for hook in _makers(module, name):
            hook(module, ())  # type: ignore[operator]
    return getattr(module, name)


@torch.no_grad()
def _zeros_are_zeros(module: nn.Module, name: str, store: str) -> bool:
    """Whether zeros in a parameter are zeros of the weight that is made of it, and the only ones: some are
    tried, among random numbers on a copy."""
    generator = torch.Generator().manual_seed(0)
    try:
        work = copied(module).eval().float()
        found = stores(work, name)
        for zero in _some_zeros(found[store]):
            for tensor in found.values():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            found[store].masked_fill_(zero, 0)
            made = computed(work, name)
            if made.shape != zero.shape or not made.isfinite().all() or not torch.equal(made == 0, zero):
                return False
    except Exception:  # whatever somebody's parametrization raises on numbers that it did not expect
        return False
    return True


def _some_zeros(like: Tensor) -> Iterator[Tensor]:
    """Yield places of zeros: one in each of two corners, then one a row and column, so that no row or column
    of two entries is emptied."""
    rows, width = len(like), like[0].numel()
    for places in ([width - 1], [(rows - 1) * width], [i * width + (i + 1) % width for i in range(rows)]):
        zero = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
        zero.view(-1)[places[: min(like.shape[:2], default=0)]] = True
        yield zero


@torch.no_grad()
def stays_finite(module: nn.Module, name: str, parameter: nn.Parameter, zero: Tensor) -> bool:
    """Whether a weight that is computed from ``parameter`` has finite entries with these set to zero: a row
    that weight_norm divides by its norm has none left where it is emptied."""
    store = next((leaf for leaf, p in stores(module, name).items() if p is parameter), None)
    if store is None:
        return True
    work = copied(module).eval()
    stores(work, name)[store].masked_fill_(zero, 0)
    return bool(computed(work, name).isfinite().all())
