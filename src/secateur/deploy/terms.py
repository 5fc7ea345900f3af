"""What the rules speak of: values, constants, and the refusal of what a program has not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from secateur.deploy.lowering import Lowering

Arguments = dict[str, Any]
Rule = Callable[["Lowering", Arguments, fx.Node], Any]


class Refused(Exception):
    """An operator, or a setting of one, that a program has not; empty for an unknown operator."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input: its name in the program, its shape with the batch, its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not: a parameter, a buffer, or what is computed from those alone."""

    name: str
    tensor: Tensor


def is_constant(value: Any) -> TypeGuard[Constant]:
    return isinstance(value, Constant)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a call's one result, the batch included."""
    return tuple(node.meta["val"].shape)


def beside_batch(dim: int, value: Value) -> int:
    """Return a dim counted from the front; raises Refused for the batch."""
    dim %= len(value.shape)
    if dim == 0:
        raise Refused("works along the batch")
    return dim
