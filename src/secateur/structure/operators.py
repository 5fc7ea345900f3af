"""The rules of the operators: which dims of arguments and results go together.

A rule takes (walk, node, arguments by name) and returns the value of the node. What has no rule is
pointwise by its tag, or moves data, or is probed numerically, or freezes what it touches.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from secateur.structure import contractions, norms
from secateur.structure.movement import move
from secateur.structure.probe import carries, zeros_stay
from secateur.structure.propagate import UNPRUNABLE, Value, Walk, plain_of, result_of, values_in
from secateur.structure.tables import MOVES, POINTWISE, SAME, names

Arguments = dict[str, Any]
Rule = Callable[[Walk, fx.Node, Arguments], Any]


def apply(walk: Walk, node: fx.Node) -> Any:
    """Return the value of a call node."""
    target = node.target
    if target is operator.getitem:
        return walk.argument(node.args[0])[node.args[1]]
    if not isinstance(target, torch._ops.OpOverload):
        return _other(walk, node)
    if "_assert" in target._schema.name:
        return None
    name = target._schema.name.split("::")[-1]
    plain = name if name in RULES or name.startswith("__") else name.rstrip("_")
    arguments = bound(walk, node)
    example = node.meta.get("val")
    if not any(v.labelled() for v in values_in(list(arguments.values()))) and plain not in FACTORIES:
        return plain_of(example)
    rule = RULES.get(plain)
    if rule is not None:
        return rule(walk, node, arguments)
    if plain in SAME:
        value = next(v for v in values_in(list(arguments.values()))).copy()
        return [value, Value.plain(value.shape)] if isinstance(example, (list, tuple)) else value
    if plain in MOVES:
        return _moved(walk, node, plain, arguments)
    if plain in POINTWISE or torch.Tag.pointwise in target.tags:
        return pointwise(walk, node, arguments)
    return _unknown(walk, node, arguments)


def bound(walk: Walk, node: fx.Node) -> Arguments:
    """Return the arguments of a call by the names of its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    found: Arguments = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            found[argument.name] = walk.argument(node.args[index])
        elif argument.name in node.kwargs:
            found[argument.name] = walk.argument(node.kwargs[argument.name])
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


# -- groups of operators ---------------------------------------------------------------------------


def pointwise(walk: Walk, node: fx.Node, arguments: Arguments) -> Any:
    """Broadcast, and tie what meets."""
    operands = [v for v in values_in(list(arguments.values())) if v.shape]
    out = result_of(node)
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
                out.zero[dim] = zeros_stay(walk, node, {id(v) for v, d in meet if v.zero[d]})
    if str(node.target).split(".")[1].endswith("_") and operands:
        operands[0].zero = [a and b for a, b in zip(operands[0].zero, out.zero, strict=False)]
    return out


def _moved(walk: Walk, node: fx.Node, name: str, arguments: Arguments) -> Any:
    source_node = node.args[0]
    source = walk.values.get(source_node)  # type: ignore[arg-type]
    if not isinstance(source, Value):
        return _unknown(walk, node, arguments)
    if name == "index":
        _freeze_indexed(walk, source, node.args[1])  # type: ignore[arg-type]
    elif name in ("index_select", "take_along_dim") and node.args[2] not in walk.constants:
        walk.freeze(source, [node.args[1]], "indexed by a tensor")  # type: ignore[list-item]
    elif name == "select":
        walk.freeze(source, [arguments["dim"]], "a fixed index is picked from it")
    elif name == "roll":
        walk.freeze(source, _rolled(source, arguments), "it is rolled by a fixed number")
    elif name == "unbind":
        walk.freeze(source, [arguments["dim"]], "it is unbound, one tensor an index")
    return move(walk, node, source, source_node)  # type: ignore[arg-type]


def _rolled(source: Value, arguments: Arguments) -> list[int]:
    dims = arguments["dims"]
    dims = [dims] if isinstance(dims, int) else dims
    return [d % len(source.shape) for d in dims] if dims else list(range(len(source.shape)))


def _freeze_indexed(walk: Walk, source: Value, indices: Sequence[Any]) -> None:
    """A dim indexed by a tensor keeps its labels only where the index is a known list."""
    for dim, index in enumerate(indices):
        if index is None:
            continue
        constant = walk.constants.get(index)
        if constant is None or constant.dim() != 1 or constant.dtype == torch.bool:
            walk.freeze(source, [dim], "indexed by a tensor")


def _other(walk: Walk, node: fx.Node) -> Any:
    """Higher-order operators: walk the graph inside; arithmetic on sizes: nothing to do."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        arguments = [a for a in node.args if isinstance(a, fx.Node)]
        inner = [a for a in arguments if a.op == "get_attr"]
        if len(inner) == 1:
            module = getattr(walk.captured.program.graph_module, str(inner[0].target), None)
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


def _unknown(walk: Walk, node: fx.Node, arguments: Arguments) -> Any:
    """Probe each labelled dim: an operator that treats its indices one by one carries it over."""
    values = values_in(list(arguments.values()))
    out = plain_of(node.meta.get("val"))
    labelled = [v for v in values if v.labelled()]
    if len(labelled) == 1 and isinstance(out, Value):
        source = labelled[0]
        for dim in source.labelled():
            stays = carries(walk, node, source, dim)
            if stays is None:
                walk.freeze(source, [dim], f"{node.target} works across it")
            else:
                out.dims[dim], out.zero[dim] = source.dims[dim], source.zero[dim] and stays
        return out
    walk.freeze_all(values, f"{node.target} has no rule")
    return out


# -- single operators --------------------------------------------------------------------------------


def _cat(walk: Walk, node: fx.Node, a: Arguments) -> Value:
    values = [v for v in a["tensors"] if v.shape != (0,)]
    out = result_of(node)
    axis = a["dim"] % len(out.shape)
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


def _stack(walk: Walk, node: fx.Node, a: Arguments) -> Value:
    values: list[Value] = a["tensors"]
    out = result_of(node)
    axis = a["dim"] % len(out.shape)
    for dim in range(len(values[0].shape)):
        if any(v.dims[dim] is not None for v in values):
            to = dim + (dim >= axis)
            out.dims[to] = walk.join([(v, dim) for v in values])
            out.zero[to] = all(v.zero[dim] for v in values)
    return out


def _glu(walk: Walk, node: fx.Node, a: Arguments) -> Value:
    value: Value = a["self"]
    out = result_of(node)
    axis = a["dim"] % len(value.shape)
    for dim in value.labelled():
        labels = value.dims[dim]
        assert labels is not None
        if dim == axis:
            half = len(labels) // 2
            walk.labels.tie(labels[:half], labels[half:])
            labels = labels[:half]
        out.dims[dim], out.zero[dim] = labels, value.zero[dim]
    return out


def _embedding(walk: Walk, node: fx.Node, a: Arguments) -> Value:
    out, weight = result_of(node), a["weight"]
    walk.freeze(weight, [0], "a vocabulary")
    out.dims[-1], out.zero[-1] = weight.dims[1], weight.zero[1]
    return out


def _reduce(zero_safe: bool) -> Rule:
    """Rule of a reduction; ``zero_safe``: entries that are zero do not change its result."""

    def rule(walk: Walk, node: fx.Node, a: Arguments) -> Any:
        value = next(v for v in values_in(list(a.values())))
        dims = a.get("dim")
        if dims is None or dims == []:
            dims = list(range(len(value.shape)))
        dims = [d % len(value.shape) for d in ([dims] if isinstance(dims, int) else dims)]
        mended = norms.repaired(walk, node, value, dims)
        for dim in dims:
            if value.dims[dim] is not None:
                walk.consumed.append(value.dims[dim])  # type: ignore[arg-type]
            if not (mended or (zero_safe and value.zero[dim])):
                walk.freeze(value, [dim], f"reduced by {node.target._schema.name.split('::')[-1]}")  # type: ignore[union-attr]
        out = plain_of(node.meta["val"])
        for result in values_in(out):
            left = [d for d in range(len(value.shape)) if d not in dims]
            kept = len(result.shape) == len(value.shape)
            for position, dim in enumerate(left):
                to = dim if kept else position
                if result.shape and value.dims[dim] is not None:
                    result.dims[to], result.zero[to] = value.dims[dim], value.zero[dim]
        return out

    return rule


def _along(walk: Walk, node: fx.Node, a: Arguments) -> Any:
    """Softmax and its like: the dim they run along stays, the others carry over."""
    value: Value = a["self"]
    axis = a["dim"] % len(value.shape)
    walk.freeze(value, [axis], f"{node.target._schema.name.split('::')[-1]} runs along it")  # type: ignore[union-attr]
    out = plain_of(node.meta["val"])
    for result in values_in(out):
        for dim in value.labelled():
            if dim != axis and result.shape[dim] == value.shape[dim]:
                result.dims[dim] = value.dims[dim]
    return out


def _spatial(walk: Walk, node: fx.Node, a: Arguments) -> Any:
    """Pooling and resizing: channels carry over, positions stay."""
    value = next(v for v in values_in(list(a.values())))
    name = str(node.target)
    number = 3 if "3d" in name or "trilinear" in name else 1 if "1d" in name or "linear1d" in name else 2
    channel = len(value.shape) - number - 1
    walk.freeze(value, range(channel + 1, len(value.shape)), "pooled or resized along it")
    out = plain_of(node.meta["val"])
    for result in values_in(out):
        for dim in range(channel + 1):
            result.dims[dim], result.zero[dim] = value.dims[dim], value.zero[dim]
    return out


def _factory(zero: bool) -> Rule:
    def rule(walk: Walk, node: fx.Node, a: Arguments) -> Value:
        out = result_of(node)
        if out.dtype.is_floating_point:
            out.dims = [walk.fresh(n) if n > 1 else None for n in out.shape]
            out.zero = [zero] * len(out.shape)
        return out

    return rule


def _like(zero: bool) -> Rule:
    def rule(walk: Walk, node: fx.Node, a: Arguments) -> Value:
        value = a["self"].copy()
        value.zero = [zero] * len(value.shape)
        return value

    return rule


def _write(walk: Walk, node: fx.Node, a: Arguments) -> Any:
    walk.freeze_all(values_in(list(a.values())), "written to in part")
    return plain_of(node.meta.get("val"))


def _prelu(walk: Walk, node: fx.Node, a: Arguments) -> Value:
    value, slope = a["self"].copy(), a["weight"]
    if math.prod(slope.shape) > 1:
        value.dims[1] = walk.join([(value, 1), (slope, 0)])
    return value


def _size(walk: Walk, node: fx.Node, a: Arguments) -> Any:
    return plain_of(node.meta.get("val"))


FACTORIES = frozenset(["zeros", "ones", "full", "new_zeros", "new_ones", "new_full"])
RULES: dict[str, Rule] = {
    **contractions.RULES,
    **norms.RULES,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "glu": _glu,
    "embedding": _embedding,
    "prelu": _prelu,
    **dict.fromkeys(["sum", "linalg_vector_norm", "norm"], _reduce(True)),
    **dict.fromkeys(
        names(
            """
            mean amax amin max min var std var_mean std_mean prod argmax argmin any all logsumexp
            median nansum aminmax topk count_nonzero sort argsort cumsum cumprod multinomial
            """
        ),
        _reduce(False),
    ),
    **dict.fromkeys(
        names("softmax _softmax log_softmax _log_softmax cumsum cumprod sort"),
        _along,
    ),
    **dict.fromkeys(
        names(
            """
            max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d
            avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
            _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
            upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
            upsample_bicubic2d upsample_trilinear3d upsample_linear1d lp_pool2d
            _upsample_bicubic2d_aa _upsample_bilinear2d_aa
            """
        ),
        _spatial,
    ),
    **dict.fromkeys(["zeros", "new_zeros"], _factory(True)),
    **dict.fromkeys(["ones", "full", "new_ones", "new_full"], _factory(False)),
    "zeros_like": _like(True),
    **dict.fromkeys(["ones_like", "full_like"], _like(False)),
    **dict.fromkeys(
        names(
            """
            copy_ copy index_put index_put_ slice_scatter select_scatter scatter scatter_
            scatter_add masked_scatter fill_ index_add index_add_ index_copy gather
            """
        ),
        _write,
    ),
    "size": _size,
    "sym_size": _size,
}
