"""Copies of networks and inputs that share nothing with what they are copies of."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from secateur.errors import ModelError
from secateur.text import shown


def check_network(model: Any) -> None:
    """Raise ModelError for what is no network."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is {shown(model)}; it is a network, an instance of torch.nn.Module")


def copied(
    model: nn.Module, shared: Iterable[torch.Tensor] = (), instead: Mapping[int, torch.Tensor] | None = None
) -> nn.Module:
    """Return a deep copy that runs as it was written: children that torch.compile wrapped are plain again.

    ``shared``: tensors that are not copied, of a model that is nobody else's. ``instead``: by the id of a
    tensor the one that the copy has in its place.

    Raises ModelError where a module holds something that cannot be copied, or lazy or sharded parameters.
    """
    check_network(model)
    if any(map(is_lazy, model.parameters())):
        raise ModelError(f"{type(model).__name__} has lazy parameters; run it once, which gives them a shape")
    if instead is None and any(hasattr(p, "placements") for p in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} is sharded over processes, and this works on a whole copy of it; do it "
            "before the parameters are sharded"
        )
    try:
        # Results that modules keep (weight_norm's weight, a list of outputs) cannot be copied with their
        # history, and sparse tensors not as Python copies.
        memo: dict[int, Any] = {id(t): t for t in shared} | {
            id(t): _cloned(t) for t in _kept(model) if not t.is_leaf or t.layout != torch.strided
        }
        memo |= instead or {}
        cells = [pair for function in _functions(model) for pair in _rebound(function, memo)]
        for module in model.modules():
            if "_orig_mod" in module._modules:
                memo[id(module)] = copy.deepcopy(module._modules["_orig_mod"], memo)
        with warnings.catch_warnings():  # what torch says of its own graphs
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            work = copy.deepcopy(model, memo)
        for new, old in cells:
            new.cell_contents = _copied_in(old.cell_contents, memo)
        return work
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied: {error}") from error


def _functions(model: nn.Module) -> Iterator[FunctionType]:
    """Yield the functions that modules hold as attributes and as hooks: a ``forward`` put on one, say."""
    for module in model.modules():
        for value in vars(module).values():
            for part in value.values() if isinstance(value, dict) else (value,):
                if isinstance(part, FunctionType):
                    yield part


def _rebound(function: FunctionType, memo: dict[int, Any]) -> list[tuple[CellType, CellType]]:
    """Note as a function's copy its like with a closure of its own, and return the closure's cells, new and
    old: deepcopy itself would leave the network's copy with a function that reads the network."""
    if id(function) in memo or not function.__closure__:
        return []
    filled = [cell for cell in function.__closure__ if cell != CellType()]
    fresh_cells = {id(cell): CellType() for cell in filled}
    closure = tuple(fresh_cells.get(id(cell), cell) for cell in function.__closure__)
    like = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    like.__kwdefaults__, like.__dict__ = function.__kwdefaults__, dict(function.__dict__)
    memo[id(function)] = like
    inner = [c.cell_contents for c in filled if isinstance(c.cell_contents, FunctionType)]
    return [(fresh_cells[id(cell)], cell) for cell in filled] + [p for f in inner for p in _rebound(f, memo)]


def _copied_in(value: Any, memo: dict[int, Any]) -> Any:
    """Return what a cell holds in the copy: what has been copied, and containers; all else as it is."""
    if id(value) in memo or isinstance(value, (dict, list, set, deque)):
        return copy.deepcopy(value, memo)
    return value


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    clone = tensor.detach().clone()
    return nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone


def _kept(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors that modules hold as attributes, in containers and in plain objects too."""
    seen: set[int] = set()
    left: list[Any] = [vars(module) for module in model.modules()]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, (str, bytes, type, ModuleType, nn.Module)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set, frozenset, deque)):
            left.extend(value.values() if isinstance(value, dict) else value)
        else:
            left.append(getattr(value, "__dict__", ()))


def fresh(inputs: Any) -> Any:
    """Return a copy of nested inputs, for a forward that changes what it is given: a cache that it fills,
    a tensor that it normalises in place."""
    try:
        return copy.deepcopy(inputs)
    except Exception:  # a tensor with a history, an object of the user's: given as it is
        return inputs
