"""What share of units must go so that a network fits into so many parameters, or bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import BudgetError
from secateur.graph.compare import tensors_in
from secateur.large.treatment import rankable
from secateur.large.walk import Named, Walk
from secateur.numeric import is_real, is_whole
from secateur.pruning.budgets import Uniform
from secateur.pruning.prune import prune
from secateur.pruning.unit_criteria import L2Norm
from secateur.running import call_model
from secateur.structure.compact import compact
from secateur.structure.surgery import parameters_left
from secateur.structure.tracing import trace
from secateur.structure.units import Structure

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_STEPS = 1000  # of the share


def bytes_of(size: int | str, name: str = "memory") -> int:
    """Return a number of bytes: 5000000000, "5GB", "4.5GiB".

    Args:
        size: a number, or a text.
        name: what it is, for the error.

    Returns:
        How many bytes.

    Raises:
        BudgetError: for what is no size.

    Example:
        >>> from secateur.large.fitting import bytes_of
        >>> bytes_of("1.5GB")
        1500000000
    """
    text = str(size).strip().upper()
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMGT]I?B|B|)", text)
    if isinstance(size, bool) or found is None or float(found[1]) <= 0:
        raise BudgetError(f"{name} is {size!r}; a number of bytes, or a text like '5GB', is right")
    return round(float(found[1]) * _UNITS[found[2].removeprefix("B") if found[2] == "B" else found[2]])


@dataclass(frozen=True)
class Limit:
    """What may be left: a share of the ``parameters``, or bytes of ``memory`` for the weights, in their
    dtype, and the keys and values of ``batch`` sequences of ``context`` tokens."""

    parameters: float | None = None
    memory: int | None = None
    context: int = 4096
    batch: int = 1

    def __post_init__(self) -> None:
        if (self.parameters is None) == (self.memory is None):
            raise BudgetError("give parameters=, a share that may be left, or memory=, in bytes")
        share = self.parameters
        if share is not None and not (is_real(share) and 0 < share <= 1):
            raise BudgetError(
                f"parameters is {share!r}; a share that may be left, over 0 and up to 1, is right"
            )
        for name in ("context", "batch"):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise BudgetError(f"{name} is {getattr(self, name)!r}; it counts from 1")


@dataclass(frozen=True)
class _Kind:
    """Blocks of one kind: how many, one of them traced, the bytes that it keeps of a token, and the groups of
    units, its key and value heads, of which that is made."""

    number: int
    structure: Structure
    names: tuple[str, ...]
    cached: float
    heads: tuple[str, ...]

    def parameters(self, share: float) -> int:
        pruned = {}
        for name in self.names:
            units = np.zeros(len(self.structure.groups[name]), dtype=bool)
            units[: self._gone(name, share)] = True
            pruned[name] = units
        return self.number * parameters_left(self.structure, pruned)

    def cache(self, share: float) -> float:
        """Return the bytes of a token that are left."""
        left = self.number * self.cached
        for name in self.heads:
            left *= 1 - self._gone(name, share) / len(self.structure.groups[name])
        return left

    def _gone(self, name: str, share: float) -> int:
        number = len(self.structure.groups[name])
        return min(round(share * number), number - 1)  # as ``prune`` takes them: one stays


@torch.no_grad()
def share_for(walk: Walk, limit: Limit) -> float:
    """Return the smallest share of the units of every block with which a network keeps to a limit."""
    kinds = _kinds(walk)
    model = walk.opened.model
    whole = sum(p.numel() for p in model.parameters())
    around = whole - sum(kind.parameters(0.0) for kind in kinds)
    width = next(p for p in model.parameters() if p.is_floating_point()).element_size()

    def cost(share: float) -> float:
        left = around + sum(kind.parameters(share) for kind in kinds)
        if limit.parameters is not None:
            return left
        tokens = limit.context * limit.batch
        return width * left + tokens * sum(kind.cache(share) for kind in kinds)

    most = whole * limit.parameters if limit.parameters is not None else float(limit.memory or 0)
    low, high = 0, _STEPS - 1
    if cost(high / _STEPS) > most:
        raise BudgetError(
            f"with next to no units left there are {cost(high / _STEPS):,.0f} of the {most:,.0f} "
            f"{'parameters' if limit.parameters is not None else 'bytes'} that may be left: remove blocks too"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle / _STEPS) <= most else (middle + 1, high)
    return low / _STEPS


def _kinds(walk: Walk) -> list[_Kind]:
    by_shape: dict[Any, list[str]] = {}
    for path in walk.blocks:
        block = walk.opened.model.get_submodule(path)
        key = tuple((name, tuple(t.shape)) for name, t in block.state_dict().items())
        by_shape.setdefault((path.rpartition(".")[0], key), []).append(path)
    found = []
    for paths in by_shape.values():
        block, example = walk.opened.block(paths[0]), walk.examples[paths[0]]
        structure = trace(block, (), kwargs=example)
        names = tuple(rankable(structure))
        whole = _cached(block, example)
        heads = tuple(
            name for name in names if whole and _cached(_halved(block, example, name), example) < whole
        )
        width = next(walk.opened.model.get_submodule(paths[0]).parameters()).element_size()
        found.append(_Kind(len(paths), structure, names, whole * width / 4, heads))
    return found


def _halved(block: nn.Module, example: Mapping[str, Any], name: str) -> nn.Module:
    """Return a block without half of the units of one group."""
    thin = copied(block)
    structure = trace(thin, (), kwargs=example)
    prune(thin, L2Norm(), Uniform(0.5), structure=structure, include=name)
    return compact(thin, (), kwargs=example, structure=structure)[0]


def _cached(block: nn.Module, example: Mapping[str, Any]) -> float:
    """Return how many bytes a block in float32 keeps of each token: its keys and values."""
    if "past_key_values" not in example:
        return 0.0
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    named: Named = {**example, "past_key_values": cache, "use_cache": True}
    call_model(block, (), named)
    kept = [t for layer in cache.layers for t in tensors_in([layer.keys, layer.values])]
    tokens = next(t for t in tensors_in(list(example.values())) if t.dim() == 3)
    return sum(t.numel() * 4 for t in kept) / (tokens.shape[0] * tokens.shape[1])
