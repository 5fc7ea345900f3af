"""From an exported graph to the nodes of a program: one walk, one rule an operator (``rules``, ``moves``)."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from secateur.deploy.program.elementwise import ELEMENTWISE
from secateur.deploy.program.emitting import Constant, Lowering, Refused, Rule, Turned, Value
from secateur.deploy.program.moves import MOVES
from secateur.deploy.program.recurrent import RECURRENT
from secateur.deploy.program.resampling import RESAMPLED
from secateur.deploy.program.rules import RULES
from secateur.errors import ModelError
from secateur.graph.calls import Call
from secateur.graph.capture import Captured
from secateur.graph.operators import plain
from secateur.runtime.operators import OPERATORS

_RULES: dict[Any, Rule] = {**RULES, **ELEMENTWISE, **MOVES, **RECURRENT, **RESAMPLED}


def lower(captured: Captured, batch: int) -> Lowering:
    """Return the unoptimised program of a graph that was captured with ``batch`` examples, a size that
    nothing else has. Raises ModelError for an operator that a program lacks."""
    made, stored = Lowering(batch), set(captured.tensors.values())
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            made.values[node] = _placeholder(made, captured, node)
        elif node.op == "call_function":
            try:
                made.values[node] = _call(made, Call(node), stored)
            except Refused as error:
                raise ModelError(_refusal(captured, Call(node), str(error))) from None
        elif node.op == "get_attr":
            made.values[node] = None
    for name in captured.outputs:
        value = next((made.values[n] for n in captured.graph.nodes if n.name == name), None)
        if not isinstance(value, Value):
            raise ModelError(f"{type(captured.model).__name__} puts out what does not depend on its input")
        if isinstance(value, Turned):
            raise ModelError(f"{type(captured.model).__name__} moves the batch of what it puts out")
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
    if kind not in ("float32", "int64", "int32", "bool"):
        raise ModelError(f"input {node.name!r} is of {kind}; a program reads float32, int64, int32 and bool")
    made.inputs.append({"name": node.name, "shape": [None, *example.shape[1:]], "dtype": kind})
    return Value(node.name, tuple(example.shape), example.dtype)


def _call(made: Lowering, call: Call, stored: set[str]) -> Any:
    if call.operator is operator.getitem:
        return made.values[call.node.args[0]][call.node.args[1]]  # type: ignore[index]
    if call.schema is None:
        raise Refused("")
    if call.checks:
        return None
    arguments = call.with_values(made.values.__getitem__)
    first = next(iter(arguments.values()), None)
    if call.in_place and isinstance(first, Constant) and first.name in stored:
        raise Refused("changes a parameter or buffer")
    if not any(isinstance(leaf, Value) for leaf in _pytree.tree_leaves(arguments)):
        return _computed(made, call, first)
    known = plain(call.operator)
    rule = _RULES.get(known)
    if rule is None or (call.in_place and not _writes_its_first(call)):
        raise Refused("")
    made.begin(call.node.name)
    try:
        result = rule(made, arguments, call)
    except KeyError as error:  # of an operator that a user has said to be like another
        raise Refused(f"has no argument {error}, which {known} has") from None
    example = call.node.meta.get("val")
    if isinstance(example, Tensor) and isinstance(result, Value) and example.dtype != result.dtype:
        raise Refused("changes the dtype")
    if call.in_place:
        _rename(made, first, result)
    return result


def _writes_its_first(call: Call) -> bool:
    """Whether a call writes to its first operand and to no other, as ``relu_`` does."""
    assert call.schema is not None
    written = [bool(a.alias_info is not None and a.alias_info.is_write) for a in call.schema.arguments]
    return written[0] and not any(written[1:])


def _computed(made: Lowering, call: Call, first: Any) -> Any:
    """Run an operator that no input reaches, once and for all."""
    if torch.Tag.nondeterministic_seeded in call.node.target.tags:  # type: ignore[union-attr]
        raise Refused("draws random numbers")

    def real(node: fx.Node) -> Any:
        value = made.values[node]
        if not isinstance(value, Constant):
            return value
        return value.tensor.clone() if call.in_place else value.tensor

    with torch.no_grad():
        result = call.run(real)
    if isinstance(result, (list, tuple)):
        return [_constant(f"{call.node.name}.{i}", part) for i, part in enumerate(result)]
    result = _constant(call.node.name, result)
    if call.in_place and isinstance(first, Constant) and isinstance(result, Constant):
        _rename(made, first, result)
    return result


def _constant(name: str, result: Any) -> Any:
    return Constant(name, result.detach()) if isinstance(result, Tensor) else result


def _rename(made: Lowering, old: Any, new: Any) -> None:
    """After an in-place operator every name of its operand means its result."""
    for node, value in made.values.items():
        if value is old:
            made.values[node] = new


def _refusal(captured: Captured, call: Call, reason: str) -> str:
    path = call.modules[0] if call.modules else ""
    where = f"module {path!r}" if path else f"the forward of {type(captured.model).__name__}"
    if reason:
        return f"{call.node.target} in {where} {reason}, so it cannot be a program's"
    supported = ", ".join(sorted(OPERATORS))
    return f"{call.node.target} in {where} has no counterpart in a program; supported: {supported}"
