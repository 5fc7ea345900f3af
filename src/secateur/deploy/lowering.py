"""From an exported graph to the nodes of a program: one walk, one rule an operator (``rules``, ``moves``)."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from secateur.deploy.moves import MOVES
from secateur.deploy.operators import OPERATORS
from secateur.deploy.rules import RULES
from secateur.deploy.terms import Constant, Refused, Rule, Value
from secateur.errors import ModelError
from secateur.graph.capture import Captured

_RULES: dict[str, Rule] = {**RULES, **MOVES}


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
        """Add a node; raises Refused where its result has no batch in front."""
        shape = tuple(shape)
        if not shape or shape[0] != self.batch:
            raise Refused(f"makes a {len(shape)}-dim tensor that does not begin with the batch")
        if not all(isinstance(value, Value) for value in inputs):
            raise Refused("works on a constant where it should on an input")
        if op != "embedding" and any(value.dtype != torch.float32 for value in inputs):
            raise Refused("reads numbers that are not float32")
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

    def begin(self, name: str) -> None:
        self.current, self._emitted = name, 0

    def argument(self, value: Any) -> Any:
        """Return an argument of a call with its graph nodes replaced by what they stand for."""
        return fx.node.map_arg(value, lambda node: self.values[node])  # type: ignore[return-value]


def lower(captured: Captured, batch: int) -> Lowering:
    """Return the unoptimised program of a graph that was captured with ``batch`` examples, a size that
    nothing else has. Raises ModelError for an operator that the program has not."""
    made, stored = Lowering(batch), set(captured.tensors.values())
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            made.values[node] = _placeholder(made, captured, node)
        elif node.op == "call_function":
            try:
                made.values[node] = _call(made, node, stored)
            except Refused as error:
                raise ModelError(_refusal(captured, node, str(error))) from None
        elif node.op == "get_attr":
            made.values[node] = None
    for name in captured.program.graph_signature.user_outputs:
        value = next((made.values[n] for n in captured.graph.nodes if n.name == name), None)
        if not isinstance(value, Value):
            raise ModelError(f"{type(captured.model).__name__} puts out what does not depend on its input")
        made.outputs.append(value.name)
    return made


def _placeholder(made: Lowering, captured: Captured, node: fx.Node) -> Any:
    if node.name in captured.tensors:
        name = captured.tensors[node.name]
        return Constant(name, captured.tensor(name).detach())
    if node.name in captured.constants:
        return Constant(node.name, captured.constants[node.name].detach())
    example = node.meta.get("val")
    if not isinstance(example, Tensor):
        return example
    kind = str(example.dtype).removeprefix("torch.")
    if kind not in ("float32", "int64", "int32"):
        raise ModelError(f"input {node.name!r} is of {kind}; a program reads float32, int64 and int32")
    made.inputs.append({"name": node.name, "shape": [None, *example.shape[1:]], "dtype": kind})
    return Value(node.name, tuple(example.shape), example.dtype)


def _call(made: Lowering, node: fx.Node, stored: set[str]) -> Any:
    if node.target is operator.getitem:
        return made.values[node.args[0]][node.args[1]]  # type: ignore[index]
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise Refused("")
    name = schema.name.split("::")[-1]
    if name.startswith(("_assert", "sym_constrain")):
        return None
    args, kwargs = made.argument(node.args), made.argument(node.kwargs)
    if schema.is_mutable and args and isinstance(args[0], Constant) and args[0].name in stored:
        raise Refused("changes a parameter or buffer")
    if not any(isinstance(leaf, Value) for leaf in _pytree.tree_leaves((args, kwargs))):
        return _computed(made, node, args, kwargs)
    in_place = schema.is_mutable and name.endswith("_")
    rule = _RULES.get(name.rstrip("_") if in_place else name)
    if rule is None or (schema.is_mutable and not in_place):
        raise Refused("")
    bound = {}
    for index, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        bound[argument.name] = args[index] if index < len(args) else kwargs.get(argument.name, default)
    made.begin(node.name)
    result = rule(made, bound, node)
    example = node.meta.get("val")
    if isinstance(example, Tensor) and example.dtype != result.dtype:
        raise Refused("changes the dtype")
    if in_place:
        _rename(made, args[0], result)
    return result


def _computed(made: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Run an operator that no input reaches, once and for all."""
    target: Any = node.target
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise Refused("draws random numbers")
    copied = target._schema.is_mutable

    def real(leaf: Any) -> Any:
        if not isinstance(leaf, Constant):
            return leaf
        return leaf.tensor.clone() if copied else leaf.tensor

    with torch.no_grad():
        result = target(*_pytree.tree_map(real, args), **_pytree.tree_map(real, kwargs))

    if isinstance(result, (list, tuple)):
        parts = enumerate(result)
        return [Constant(f"{node.name}.{i}", t.detach()) if isinstance(t, Tensor) else t for i, t in parts]
    if not isinstance(result, Tensor):
        return result
    result = Constant(node.name, result.detach())
    if copied and args and isinstance(args[0], Constant):
        _rename(made, args[0], result)
    return result


def _rename(made: Lowering, old: Any, new: Any) -> None:
    """After an in-place operator every name of its operand means its result."""
    for node, value in made.values.items():
        if value is old:
            made.values[node] = new


def _refusal(captured: Captured, node: fx.Node, reason: str) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    where = f"module {path!r}" if path else f"the forward of {type(captured.model).__name__}"
    if reason:
        return f"{node.target} in {where} {reason}, so it cannot be a program's"
    return (
        f"{node.target} in {where} has no counterpart in a program; supported: {', '.join(sorted(OPERATORS))}"
    )
