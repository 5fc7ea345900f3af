"""A call in a captured graph as one reads it: its operator, its arguments by name, who reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

_CHECKS = ("_assert", "sym_constrain")  # operators that compute nothing


@dataclass(frozen=True)
class Call:
    """One node of a graph, read as a call; placeholders and outputs are calls of nothing."""

    node: fx.Node

    @cached_property
    def schema(self) -> torch.FunctionSchema | None:
        """The schema of an operator; None of what is none (getitem, arithmetic on sizes, inner graphs)."""
        called = self.node.op == "call_function" and isinstance(self.node.target, torch._ops.OpOverload)
        return self.node.target._schema if called else None  # type: ignore[union-attr]

    @cached_property
    def operator(self) -> Any:
        """What tables know an operator by: its packet, namespace included and overload left out."""
        return self.node.target.overloadpacket if self.schema is not None else self.node.target  # type: ignore[union-attr]

    @cached_property
    def name(self) -> str:
        """The operator as a message names it: ``relu`` of torch's own, ``mylib::relu`` of others'."""
        if self.schema is None:
            return str(self.node.target) if self.node.op == "call_function" else self.node.op
        return self.schema.name.removeprefix("aten::")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments by the names of the schema, nodes as they stand, defaults filled in."""
        found: dict[str, Any] = {}
        for index, argument in enumerate(self.schema.arguments if self.schema is not None else ()):
            if index < len(self.node.args):
                found[argument.name] = self.node.args[index]
            elif argument.name in self.node.kwargs:
                found[argument.name] = self.node.kwargs[argument.name]
            else:
                found[argument.name] = argument.default_value if argument.has_default_value() else None
        return found

    def with_values(self, value: Callable[[fx.Node], Any]) -> dict[str, Any]:
        """Return the arguments with each node replaced by what ``value`` gives for it."""
        return {name: fx.map_arg(argument, value) for name, argument in self.arguments.items()}

    def run(self, value: Callable[[fx.Node], Any]) -> Any:
        """Run the operator with ``value`` of each node in the place of the node."""
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), value)  # type: ignore[misc]
        return self.node.target(*args, **kwargs)  # type: ignore[operator]

    @property
    def checks(self) -> bool:
        """Whether it only asserts something of its operands."""
        return self.schema is not None and self.schema.name.split("::")[-1].startswith(_CHECKS)

    @property
    def in_place(self) -> bool:
        """Whether it writes to an operand."""
        return self.schema is not None and self.schema.is_mutable

    @property
    def readers(self) -> set[fx.Node]:
        """The nodes that read its result, those left out that only check it."""
        return {user for user in self.node.users if not Call(user).checks}

    @property
    def tensors(self) -> list[fx.Node]:
        """The nodes of its operands that are one tensor each."""
        return [used for used in self.node.all_input_nodes if isinstance(used.meta.get("val"), Tensor)]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of its one result; None where it is not one tensor."""
        value = self.node.meta.get("val")
        return tuple(value.shape) if isinstance(value, Tensor) else None

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules whose forwards it stands in, innermost first."""
        stack = (self.node.meta.get("nn_module_stack") or {}).values()
        return tuple(str(entry[0]).partition("@")[0] for entry in reversed(list(stack)))
