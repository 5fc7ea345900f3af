"""The program in the making, and what the rules that make it speak of: values, constants, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from secateur.graph.calls import Call

Arguments = dict[str, Any]


class Refused(Exception):
    """An operator, or a setting of one, that a program lacks; empty for an unknown operator."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input: its name in the program, its shape with the batch, its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Turned(Value):
    """A value whose batch is not in front: ``source`` with its ``dims`` in another order. Only what brings
    the batch to the front again reads it: queries, keys and values, taken apart along the first dim."""

    source: Value = field(kw_only=True)
    dims: tuple[int, ...] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not: a parameter, a buffer, or what is computed from those alone."""

    name: str
    tensor: Tensor


class Lowering:
    """The program in the making: its inputs, outputs, nodes and tensors."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[str] = []
        self.nodes: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[fx.Node, Any] = {}
        self.current = ""
        self._emitted = 0

    def emit(self, op: str, inputs: list[Value], shape: Any, **settings: Any) -> Value:
        """Add a node; raises Refused where its result has no batch in front, once or several times."""
        if any(isinstance(value, Turned) for value in inputs):
            raise Refused("moves the batch")
        shape = tuple(shape or ())
        if not shape or not shape[0] or shape[0] % self.batch:
            raise Refused(f"makes a {len(shape)}-dim tensor that does not begin with the batch")
        if not all(isinstance(value, Value) for value in inputs):
            raise Refused("works on a constant where it should on an input")
        if op != "embedding" and any(value.dtype != torch.float32 for value in inputs):
            raise Refused("reads numbers that are not float32")
        rows = [shape[0] // self.batch, inputs[0].shape[0] // self.batch]
        if op == "constant" or (op == "reshape" and rows[0] != rows[1]):
            settings["rows"] = rows
        elif rows[0] != rows[1]:
            raise Refused("works along the batch")
        name = self.current if not self._emitted else f"{self.current}.{self._emitted}"
        self._emitted += 1
        names = [value.name for value in inputs]
        self.nodes.append({"op": op, "inputs": names, "output": name, "shape": list(shape[1:]), **settings})
        return Value(name, shape)

    def tensor(self, value: Any) -> str | None:
        """Keep a constant for a node and return its name; None stays None."""
        if value is None:
            return None
        if not isinstance(value, Constant):
            raise Refused("has a weight that is computed from the input")
        name = value.name
        while name in self.tensors and not torch.equal(self.tensors[name], value.tensor):
            name += "_"
        self.tensors[name] = value.tensor
        return name

    def by_example(self, constant: Constant, like: Value) -> Any:
        """Return what a constant that was laid out for the whole batch is for each example: a constant, or a
        value of several rows an example; one that lies otherwise is returned as it is."""
        tensor = constant.tensor
        if tensor.dim() != len(like.shape) or len(tensor) % self.batch:
            return constant
        rows = tensor.reshape(self.batch, -1, *tensor.shape[1:])
        if not (rows == rows[:1]).all():
            return constant
        own = Constant(f"{constant.name}.rows", rows[0])
        if len(rows[0]) == 1:
            return own
        return self.emit("constant", [like], tensor.shape, tensor=self.tensor(own))

    def repeated(self, constant: Constant, like: Value) -> Value:
        """Return as a value a constant that is the same for every example."""
        own = self.by_example(constant, like)
        if not isinstance(own, Constant):
            return own
        if len(own.tensor) != 1 or own.tensor.dtype != torch.float32:
            raise Refused("joins a constant to what depends on the input")
        return self.emit("constant", [like], (self.batch, *own.tensor.shape[1:]), tensor=self.tensor(own))

    def begin(self, name: str) -> None:
        self.current, self._emitted = name, 0


Rule = Callable[[Lowering, Arguments, Call], Any]


def is_constant(value: Any) -> TypeGuard[Constant]:
    return isinstance(value, Constant)


def beside_batch(dim: int, value: Value) -> int:
    """Return a dim counted from the front; raises Refused for the batch."""
    dim %= len(value.shape)
    if dim == 0 or isinstance(value, Turned):
        raise Refused("works along the batch")
    return dim
