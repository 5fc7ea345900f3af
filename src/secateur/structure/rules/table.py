"""The rules of the operators: which dims of arguments and results go together.

A rule takes (walk, call, arguments by name) and returns the value of the call. It stands here by the key
under which ``secateur.graph.operators`` knows the operator, or by the kind that its row says. What has
neither is probed numerically, or freezes what it touches.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from secateur.graph.calls import Call
from secateur.graph.operators import operator_of, plain
from secateur.structure.propagate import UNPRUNABLE, Labelled, Walk, plain_of, result_of, values_in
from secateur.structure.rules import contractions, indexing, norms, quantised
from secateur.structure.rules.movement import move
from secateur.structure.rules.probe import carries, zeros_stay

aten = torch.ops.aten
Arguments = dict[str, Any]
Rule = Callable[[Walk, Call, Arguments], Any]


def apply(walk: Walk, call: Call) -> Any:
    """Return the value of a call."""
    if call.operator is operator.getitem:
        return walk.argument(call.node.args[0])[call.node.args[1]]
    if call.schema is None:
        return _other(walk, call)
    if call.checks:
        return None
    row, key, arguments = operator_of(call), plain(call.operator), call.with_values(walk.values.get)
    labelled = any(value.labelled() for value in values_in(list(arguments.values())))
    if not labelled and key not in FACTORIES:
        return plain_of(call.node.meta.get("val"))
    named = contractions.RULES_BY_NAME.get(str(getattr(key, "_qualified_op_name", "")))
    rule = row.rule or RULES.get(key) or named or KINDS.get(row.kind, _unknown)
    return rule(walk, call, arguments)


# -- groups of operators ---------------------------------------------------------------------------


def pointwise(walk: Walk, call: Call, arguments: Arguments) -> Any:
    """Broadcast, and tie what meets."""
    if not isinstance(call.node.meta.get("val"), Tensor):  # where(condition) gives indices
        return _unknown(walk, call, arguments)
    operands = [v for v in values_in(list(arguments.values())) if v.shape]
    out = result_of(call.node)
    for dim in range(len(out.shape)):
        if out.shape[dim] == 1:
            continue
        meet = []
        for value in operands:
            own = dim - len(out.shape) + len(value.shape)
            if own >= 0 and value.shape[own] == out.shape[dim]:
                meet.append((value, own))
        if any(v.dims[d] is not None for v, d in meet):
            out.dims[dim] = walk.join(meet)
            if out.dims[dim] is not None:
                out.zero[dim] = zeros_stay(walk, call, {id(v) for v, d in meet if v.zero[d]})
    if call.in_place and operands:
        operands[0].zero = [a and b for a, b in zip(operands[0].zero, out.zero, strict=False)]
    return out


def _same(walk: Walk, call: Call, arguments: Arguments) -> Any:
    """An operand as it is, and beside it what says which of its entries were dropped."""
    value = next(iter(values_in(list(arguments.values())))).copy()
    several = isinstance(call.node.meta.get("val"), (list, tuple))
    return [value, Labelled.plain(value.shape)] if several else value


def _moved(walk: Walk, call: Call, arguments: Arguments) -> Any:
    key, given = plain(call.operator), call.arguments
    source_node: Any = call.node.args[0]
    source = walk.values.get(source_node)
    if not isinstance(source, Labelled):
        return _unknown(walk, call, arguments)
    if key is aten.index_select:
        if given["index"] not in walk.constants:
            walk.freeze(source, [given["dim"]], indexing.INDEXED)
    elif key is aten.select and isinstance(given["index"], int):
        dim = given["dim"] % len(source.shape)
        return move(walk, call, source, source_node, {dim: given["index"]})
    elif key is aten.roll:
        walk.freeze(source, _rolled(source, arguments), "it is rolled by a fixed number")
    elif key is aten.unbind:
        walk.freeze(source, [given["dim"]], "it is unbound, one tensor an index")
    return move(walk, call, source, source_node)


def _rolled(source: Labelled, arguments: Arguments) -> list[int]:
    dims = arguments["dims"]
    dims = [dims] if isinstance(dims, int) else dims
    return [d % len(source.shape) for d in dims] if dims else list(range(len(source.shape)))


def _other(walk: Walk, call: Call) -> Any:
    """Higher-order operators: walk the graph inside; arithmetic on sizes: nothing to do."""
    node = call.node
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        arguments = [a for a in node.args if isinstance(a, fx.Node)]
        inner = [a for a in arguments if a.op == "get_attr"]
        if len(inner) == 1:
            module = getattr(walk.captured.graph_module, str(inner[0].target), None)
            if isinstance(module, fx.GraphModule):
                outside = arguments[arguments.index(inner[0]) + 1 :]
                places = [n for n in module.graph.nodes if n.op == "placeholder"]
                if len(places) == len(outside):
                    for place, given in zip(places, outside, strict=True):
                        walk.values[place] = walk.values.get(given)
                        if given in walk.constants:
                            walk.constants[place] = walk.constants[given]
                    result = walk.walk(module.graph)
                    return walk.argument(result)
    walk.freeze_all(values_in(walk.argument(list(node.args))), f"{node.target} has no rule")
    return plain_of(node.meta.get("val"))


def _unknown(walk: Walk, call: Call, arguments: Arguments) -> Any:
    """Probe each labelled dim: an operator that treats its indices one by one carries it over."""
    values = values_in(list(arguments.values()))
    out = plain_of(call.node.meta.get("val"))
    labelled = [v for v in values if v.labelled()]
    if len(labelled) == 1 and isinstance(out, Labelled):
        source = labelled[0]
        for dim in source.labelled():
            stays = carries(walk, call, source, dim)
            if stays is None:
                walk.freeze(source, [dim], f"{call.node.target} works across it")
            else:
                out.dims[dim], out.zero[dim] = source.dims[dim], source.zero[dim] and stays
        return out
    walk.freeze_all(values, f"{call.node.target} has no rule")
    return out


# -- single operators --------------------------------------------------------------------------------


def _cat(walk: Walk, call: Call, a: Arguments) -> Labelled:
    out = result_of(call.node)
    axis = a["dim"] % len(out.shape)
    values = [v for v in a["tensors"] if v.shape != (0,) and v.shape[axis]]  # nothing is in the others
    for dim in range(len(out.shape)):
        if dim != axis and out.shape[dim] > 1 and any(v.dims[dim] is not None for v in values):
            out.dims[dim] = walk.join([(v, dim) for v in values])
            out.zero[dim] = all(v.zero[dim] for v in values)
    if any(v.dims[axis] is not None for v in values):
        parts = []
        for value in values:
            labels = value.dims[axis]
            if labels is None:
                labels = walk.fresh(value.shape[axis])
                walk.labels.freeze(labels, UNPRUNABLE)
            parts.append(labels)
        out.dims[axis] = torch.cat([torch.from_numpy(p) for p in parts]).numpy()
        out.zero[axis] = all(v.zero[axis] or v.dims[axis] is None for v in values)
    return out


def _stack(walk: Walk, call: Call, a: Arguments) -> Labelled:
    values: list[Labelled] = a["tensors"]
    out = result_of(call.node)
    axis = a["dim"] % len(out.shape)
    for dim in range(len(values[0].shape)):
        if any(v.dims[dim] is not None for v in values):
            to = dim + (dim >= axis)
            out.dims[to] = walk.join([(v, dim) for v in values])
            out.zero[to] = all(v.zero[dim] for v in values)
    return out


def _glu(walk: Walk, call: Call, a: Arguments) -> Labelled:
    value: Labelled = a["self"]
    out = result_of(call.node)
    axis = a["dim"] % len(value.shape)
    for dim, labels in value.labels():
        if dim == axis:
            half = len(labels) // 2
            walk.labels.tie(labels[:half], labels[half:])
            labels = labels[:half]
        out.dims[dim], out.zero[dim] = labels, value.zero[dim]
    return out


def _embedding(walk: Walk, call: Call, a: Arguments) -> Labelled:
    out, weight = result_of(call.node), a["weight"]
    walk.freeze(weight, [0], "a vocabulary")
    out.dims[-1], out.zero[-1] = weight.dims[1], weight.zero[1]
    return out


def _reduce(zero_safe: bool) -> Rule:
    """Rule of a reduction; ``zero_safe``: entries that are zero do not change its result."""

    def rule(walk: Walk, call: Call, a: Arguments) -> Any:
        value = next(v for v in values_in(list(a.values())))
        dims = a.get("dim")
        if dims is None or dims == []:
            dims = list(range(len(value.shape)))
        dims = [d % len(value.shape) for d in ([dims] if isinstance(dims, int) else dims)]
        mended = norms.repaired(walk, call, value, dims)
        for dim in dims:
            if value.dims[dim] is not None:
                walk.consumed.append(value.dims[dim])  # type: ignore[arg-type]
            counted = walk.graph and call.operator is aten.mean  # a graph knows of how many it was
            if not (mended or ((zero_safe or counted) and value.zero[dim])):
                walk.measure(call.node, value, [dim], f"reduced by {call.name}")
        out = plain_of(call.node.meta["val"])
        for result in values_in(out):
            left = [d for d in range(len(value.shape)) if d not in dims]
            kept = len(result.shape) == len(value.shape)
            for position, dim in enumerate(left):
                to = dim if kept else position
                if result.shape and value.dims[dim] is not None:
                    result.dims[to], result.zero[to] = value.dims[dim], value.zero[dim]
        return out

    return rule


def _packed(walk: Walk, call: Call, a: Arguments) -> Any:
    """Sequences packed beside each other, or padded again: what stands behind batch and time carries over."""
    value = next(v for v in values_in(list(a.values())) if v.dtype.is_floating_point)
    packed = len(value.shape) - len(plain_of(call.node.meta["val"])[0].shape)
    first = 2 if packed > 0 else 1  # of a sequence padded, and packed
    walk.freeze(value, range(first), "batch and time of sequences")
    out = plain_of(call.node.meta["val"])
    shift = len(out[0].shape) - len(value.shape)
    for dim in range(first, len(value.shape)):
        out[0].dims[dim + shift] = value.dims[dim]
        out[0].zero[dim + shift] = value.zero[dim] and not a.get("padding_value")
    return out


def _as_real(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """view_as_real puts a dim of two at the end, view_as_complex takes it away."""
    out, value = result_of(call.node), a["self"]
    if len(out.shape) < len(value.shape):
        walk.freeze(value, [len(out.shape)], "its pairs are complex numbers")
    for dim in range(min(len(out.shape), len(value.shape))):
        out.dims[dim], out.zero[dim] = value.dims[dim], value.zero[dim]
    return out


def _along(walk: Walk, call: Call, a: Arguments) -> Any:
    """Softmax and its like: the dim they run along stays, the others carry over."""
    value: Labelled = a["self"]
    axis = a["dim"] % len(value.shape)
    walk.freeze(value, [axis], f"{call.name} runs along it")
    out = plain_of(call.node.meta["val"])
    for result in values_in(out):
        for dim in value.labelled():
            if dim != axis and result.shape[dim] == value.shape[dim]:
                result.dims[dim] = value.dims[dim]
    return out


def _spatial(walk: Walk, call: Call, a: Arguments) -> Any:
    """Pooling and resizing: channels carry over, positions stay."""
    value = next(v for v in values_in(list(a.values())))
    channel = len(value.shape) - operator_of(call).spatial - 1
    walk.freeze(value, range(channel + 1, len(value.shape)), "pooled or resized along it")
    out = plain_of(call.node.meta["val"])
    for result in values_in(out):
        for dim in range(channel + 1):
            result.dims[dim], result.zero[dim] = value.dims[dim], value.zero[dim]
    return out


def _factory(zero: bool) -> Rule:
    def rule(walk: Walk, call: Call, a: Arguments) -> Labelled:
        out = result_of(call.node)
        if out.dtype.is_floating_point:
            out.dims = [walk.fresh(n) if n > 1 else None for n in out.shape]
            out.zero = [zero] * len(out.shape)
        return out

    return rule


def _like(zero: bool) -> Rule:
    def rule(walk: Walk, call: Call, a: Arguments) -> Labelled:
        value = a["self"].copy()
        value.zero = [zero] * len(value.shape)
        return value

    return rule


def _prelu(walk: Walk, call: Call, a: Arguments) -> Labelled:
    value, slope = a["self"].copy(), a["weight"]
    if math.prod(slope.shape) > 1:
        value.dims[1] = walk.join([(value, 1), (slope, 0)])
    return value


def _expanded(walk: Walk, call: Call, a: Arguments) -> Any:
    """What is the same all along a dim, a mask for every head say, fits any number of them there."""
    source, like = a["self"], a.get("other")
    out = _moved(walk, call, a) if source.labelled() else result_of(call.node)
    for dim in range(1, len(out.shape)):  # the first is the batch, which nothing else labels
        own = dim - len(out.shape) + len(source.shape)
        if out.shape[dim] > 1 and own >= 0 and source.shape[own] == 1:
            if isinstance(like, Labelled):
                out.dims[dim] = like.dims[dim]
            else:
                labels = out.dims[dim] = walk.fresh(out.shape[dim])
                walk.repeated.append(labels)
                walk.labels.copies(labels)
    return out


FACTORIES = frozenset(
    [aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full, aten.expand]
)
# Of kinds, what serves where an operator has no rule of its own.
KINDS: dict[str, Rule] = {
    "pointwise": pointwise,
    "same": _same,
    "moves": _moved,
    "affine": contractions.linear,
    "pools": _spatial,
    "reduces": _reduce(False),
    "runs along": _along,
    "joins": _cat,
}
RULES: dict[Any, Rule] = {
    **contractions.RULES,
    **norms.RULES,
    **indexing.RULES,
    **quantised.RULES,
    aten.stack: _stack,
    aten.glu: _glu,
    aten.embedding: _embedding,
    aten.prelu: _prelu,
    **dict.fromkeys([aten.sum, aten.linalg_vector_norm, aten.norm], _reduce(True)),
    **dict.fromkeys([aten.zeros, aten.new_zeros], _factory(True)),
    **dict.fromkeys([aten.ones, aten.full, aten.new_ones, aten.new_full], _factory(False)),
    **dict.fromkeys([aten.expand, aten.expand_as], _expanded),
    aten.zeros_like: _like(True),
    **dict.fromkeys([aten.ones_like, aten.full_like], _like(False)),
    **dict.fromkeys([aten.view_as_real, aten.view_as_complex], _as_real),
    **dict.fromkeys([aten._pack_padded_sequence, aten._pad_packed_sequence], _packed),
    **dict.fromkeys([aten.item, aten._local_scalar_dense, aten.is_nonzero], lambda walk, call, a: None),
    **dict.fromkeys([aten.size, aten.sym_size], lambda walk, call, a: plain_of(call.node.meta.get("val"))),
}
