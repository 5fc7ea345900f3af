"""The program in the making, and what the rules that make it speak of: values, constants, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from secateur.graph.calls import Call

Arguments = dict[str, Any]
COMPARED = ("eq", "ne", "lt", "gt", "le", "ge")
LOGICAL = ("and", "or", "xor", "not")
# These read numbers of any dtype; the result of the moves is of what they read.
_MOVES = ("reshape", "permute", "slice", "expand", "cat", "take", "pad", "constant")
_ANY = (*_MOVES, *COMPARED, *LOGICAL, "embedding", "cast", "where", "cumsum", "argmax", "sum")
_ANY += ("add", "sub", "mul", "maximum", "minimum", "abs", "amax")
_EXACT = 1 << 24  # whole numbers up to here are float32


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
    """A value whose batch is not in front, and which no node holds: each of its dims is a group of dims of
    ``source``, joined in that order. Time before the batch is one, and what steps and batch make together."""

    source: Value = field(kw_only=True)
    groups: tuple[tuple[int, ...], ...] = field(kw_only=True)

    def of(self, source: Value) -> Turned:
        """Return the same arrangement of another value of as many dims."""
        shape = tuple(math.prod(source.shape[dim] for dim in group) for group in self.groups)
        return replace(self, name=source.name, shape=shape, dtype=source.dtype, source=source)


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

    def emit(
        self, op: str, inputs: list[Value], shape: Any, kind: torch.dtype | None = None, **settings: Any
    ) -> Value:
        """Add a node, whose result is of dtype ``kind`` (None: float32, or what it moves); raises Refused
        where its result has no batch in front, once or several times."""
        if any(isinstance(value, Turned) for value in inputs):
            raise Refused("moves the batch")
        shape = tuple(shape or ())
        if not shape or not shape[0] or shape[0] % self.batch:
            raise Refused(f"makes a {len(shape)}-dim tensor that does not begin with the batch")
        if not all(isinstance(value, Value) for value in inputs):
            raise Refused("works on a constant where it should on an input")
        if op not in _ANY and any(value.dtype != torch.float32 for value in inputs):
            raise Refused("reads numbers that are not float32")
        if kind is None:
            kind = inputs[0].dtype if op in _MOVES and op != "constant" else torch.float32
        rows = [shape[0] // self.batch, inputs[0].shape[0] // self.batch]
        if op == "constant" or (op == "reshape" and rows[0] != rows[1]):
            settings["rows"] = rows
        elif rows[0] != rows[1]:
            raise Refused("works along the batch")
        name = self.current if not self._emitted else f"{self.current}.{self._emitted}"
        self._emitted += 1
        names = [value.name for value in inputs]
        self.nodes.append({"op": op, "inputs": names, "output": name, "shape": list(shape[1:]), **settings})
        return Value(name, shape, kind)

    def cast(self, value: Value, kind: torch.dtype) -> Value:
        """Return a value as numbers of another dtype."""
        if value.dtype == kind:
            return value
        if kind not in (torch.float32, torch.int64, torch.int32, torch.bool):
            raise Refused("changes the dtype")
        if isinstance(value, Turned):
            return value.of(self.cast(value.source, kind))
        return self.emit("cast", [value], value.shape, kind, dtype=str(kind).removeprefix("torch."))

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
        own = Constant(own.name, own.tensor.float())
        return self.emit("constant", [like], tensor.shape, tensor=self.tensor(own))

    def repeated(self, constant: Constant, like: Value) -> Value:
        """Return as a value a constant that is the same for every example."""
        own, kind = self.by_example(constant, like), constant.tensor.dtype
        if not kind.is_floating_point and bool((constant.tensor.double().abs() > _EXACT).any()):
            raise Refused("has a constant that no float32 holds")
        if isinstance(own, Constant):
            if len(own.tensor) != 1:
                raise Refused("joins a constant to what depends on the input")
            rows = own.tensor.float().expand(like.shape[0] // self.batch, *own.tensor.shape[1:])
            named = self.tensor(Constant(own.name, rows.contiguous()))
            own = self.emit("constant", [like], (like.shape[0], *rows.shape[1:]), tensor=named)
        return self.cast(own, kind)

    def among(self, operand: Any, like: Value) -> Value:
        """Return an operand beside ``like``, a number, a constant or a value, as a value of as many dims."""
        if isinstance(operand, Value):
            if len(operand.shape) != len(like.shape):
                raise Refused("broadcasts tensors of different numbers of dims, batches included")
            return operand
        if not isinstance(operand, Constant):
            operand = Constant("number", torch.tensor(operand))
        tensor = operand.tensor
        lacking = len(like.shape) - tensor.dim()
        if lacking < 0:
            raise Refused("broadcasts a constant over the batch")
        return self.repeated(Constant(operand.name, tensor.reshape(*[1] * lacking, *tensor.shape)), like)

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
