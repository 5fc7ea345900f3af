"""What stacked matrices multiply: those of experts, which no module is called for, known by their memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {  # where the two matrices stand
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::_grouped_mm": (0, 1),
    "transformers::grouped_mm_fallback": (0, 1),
}
_PICKS = ("aten::index", "aten::index_select")
Place = tuple[str, int]
"""A stack's name, and its dim that runs over what it multiplies."""


@dataclass(frozen=True)
class _Stack:
    """Memory that holds matrices of a stack: all of them, or those that ``picked`` numbers."""

    name: str
    storage: StorageWeakRef
    strides: tuple[int, ...]
    picked: Tensor | None = None


@dataclass
class Sums:
    """Of each matrix of a stack and each of its inputs: the sum of squares, and of how many numbers."""

    squares: Tensor
    number: Tensor

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.squares + other.squares, self.number + other.number)

    @property
    def mean(self) -> Tensor:
        """The mean square by input over all matrices."""
        return self.squares.sum(0) / self.number.sum(0).clamp(min=1)

    @property
    def means(self) -> Tensor:
        """The mean square by matrix and input; of a matrix that multiplied nothing, that over all of them."""
        return (self.squares / self.number.clamp(min=1)).where(self.number > 0, self.mean)


def merged(parts: Iterable[Mapping[Place, Sums]]) -> dict[Place, Sums]:
    """Return the sums of several watches, added up."""
    found: dict[Place, Sums] = {}
    for part in parts:
        for place, own in part.items():
            found[place] = found[place] + own if place in found else own
    return found


class Watch(TorchDispatchMode):
    """Adds up, while a network runs in its block, the squares of what its ``stacks`` multiply.

    ``stacks``: by name tensors of three dims, of which the first runs over matrices. They are multiplied as
    they lie, turned, in part, or picked by number, one at a time, in a batch or in groups.
    """

    def __init__(self, stacks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stacks = stacks
        self.sums: dict[Place, Sums] = {}
        self._known: dict[int, _Stack] = {}
        for name, stack in stacks.items():
            self._note(name, stack)

    @property
    def told(self) -> dict[Place, Sums]:
        return {place: Sums(own.squares.cpu(), own.number.cpu()) for place, own in self.sums.items()}

    def _note(self, name: str, tensor: Tensor, picked: Tensor | None = None) -> None:
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = _Stack(
            name, StorageWeakRef(storage), tuple(map(int, tensor.stride())), picked
        )

    def _stack_of(self, tensor: Any) -> _Stack | None:
        if not isinstance(tensor, Tensor):
            return None
        found = self._known.get(tensor.untyped_storage()._cdata)
        return None if found is None or found.storage.expired() else found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in _PRODUCTS:
            first, second = (args[place] for place in _PRODUCTS[name])
            groups = None
            if "grouped" in name:
                groups = args[2] if len(args) > 2 else (kwargs or {}).get("offs")
            if (stack := self._stack_of(second)) is not None:
                self._add(stack, second, first, groups)
            elif (stack := self._stack_of(first)) is not None and groups is None:
                self._add(stack, first.transpose(-1, -2), second.transpose(-1, -2), None)
        elif name in _PICKS and (stack := self._stack_of(args[0])) is not None and stack.picked is None:
            numbers = args[-1][0] if name == "aten::index" else args[2]
            whole = args[0].stride() == stack.strides and args[0].storage_offset() == 0
            along = name == "aten::index_select" and args[1] != 0
            if whole and not along and numbers is not None and numbers.dim() == 1 and result.dim() == 3:
                self._note(stack.name, result, numbers)
        return result

    def _add(self, stack: _Stack, weight: Tensor, read: Tensor, groups: Tensor | None) -> None:
        """Add what one product reads, (..., rows, inputs), for a weight (..., inputs, outputs)."""
        number, *sizes = self.stacks[stack.name].shape
        dims = [d for d in (1, 2) if stack.strides[d] == weight.stride(-2)]
        offset = int(weight.storage_offset())
        if len(dims) != 1 or read.shape[-1] != weight.shape[-2]:
            return
        (dim,) = dims
        first, inside = divmod(offset, stack.strides[0])
        if weight.dim() == 2:
            which = torch.tensor([first], device=read.device)
            read = read[None]
        elif weight.stride(0) == stack.strides[0] and first == 0:
            which = torch.arange(number, device=read.device)
        else:
            return
        if stack.picked is not None:
            which = stack.picked[which] if weight.dim() == 2 else stack.picked
        larger, smaller = sorted(stack.strides[1:], reverse=True)
        start = inside // larger if stack.strides[dim] == larger else inside % larger // smaller
        if groups is not None:
            rows = torch.arange(len(read), device=read.device)
            which = torch.searchsorted(groups.to(rows), rows, right=True)
            read = read[which < number, None]
            which = which[which < number]
        wide = read.detach().to(torch.promote_types(read.dtype, torch.float32))
        total = Sums(*torch.zeros(2, number, sizes[dim - 1], dtype=torch.float64, device=read.device))
        part = slice(start, start + read.shape[-1])
        total.squares[:, part].index_add_(0, which, wide.square().sum(1, dtype=torch.float64))
        total.number[:, part].index_add_(0, which, torch.full_like(wide[:, 0], wide.shape[1]).double())
        place = stack.name, dim
        self.sums[place] = self.sums[place] + total if place in self.sums else total
