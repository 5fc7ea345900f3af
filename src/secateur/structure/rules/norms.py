"""Rules of the normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from secateur.graph.calls import Call
from secateur.structure.labels import Array
from secateur.structure.propagate import Labelled, Walk
from secateur.structure.replaced.norms import LAYER, PrunedLayerNorm

aten = torch.ops.aten
NORMALISED = "normalised over"
STRANGE = f"{NORMALISED}, and not by a plain nn.LayerNorm or nn.RMSNorm with a weight over one dim"
LEVEL = f"{NORMALISED} where what goes is not zero"


def _batch_norm(walk: Walk, call: Call, a: dict[str, Any]) -> Labelled | list[Labelled]:
    value: Labelled = a["input"]
    out = value.copy()
    if a.get("training") and a.get("running_mean") is None and len(value.shape) > 1:
        over = [0, *range(2, len(value.shape))]
        walk.measure(call.node, value, over, "statistics of what it is given are taken over it")
    out.dims[1] = _with_its_parts(walk, value, a)
    scaled = isinstance(a.get("weight"), Labelled) and a["weight"].zero[0]
    shifted = isinstance(a.get("bias"), Labelled)
    out.zero = [False] * len(out.shape)
    out.zero[1] = scaled and (not shifted or a["bias"].zero[0])
    several = isinstance(call.node.meta["val"], (list, tuple))
    return [out, Labelled.plain((0,)), Labelled.plain((0,))] if several else out


def _with_its_parts(walk: Walk, value: Labelled, a: dict[str, Any]) -> Array | None:
    """Tie the channels of a value to a norm's scale, shift and statistics."""
    parts = [a.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    return walk.join([(value, 1), *((part, 0) for part in parts if isinstance(part, Labelled))])


def _zero_by_scale(value: Labelled, a: dict[str, Any]) -> list[bool]:
    """What is zero behind a norm: the channels that its scale makes zero, or that are before it."""
    weight, zero = a.get("weight"), [False] * len(value.shape)
    zero[1] = weight.zero[0] if isinstance(weight, Labelled) else value.zero[1]
    return zero


def _instance_norm(walk: Walk, call: Call, a: dict[str, Any]) -> Labelled:
    value: Labelled = a["input"]
    out = value.copy()
    walk.freeze(value, range(2, len(value.shape)), NORMALISED)
    out.dims[1], out.zero = _with_its_parts(walk, value, a), _zero_by_scale(value, a)
    return out


def _layer_norm(walk: Walk, call: Call, a: dict[str, Any]) -> Labelled:
    value: Labelled = a["input"]
    number = len(a["normalized_shape"])
    first = len(value.shape) - number
    reason = _stays(walk, call, a)
    if reason is None:
        return _stream(walk, value, [a[part] for part in ("weight", "bias") if a.get(part) is not None])
    walk.freeze(value, range(first, len(value.shape)), reason)
    for part in (a.get("weight"), a.get("bias")):
        if isinstance(part, Labelled):
            walk.freeze(part, range(number), reason)
    out = value.copy()
    out.zero = [False] * len(out.shape)
    return out


def _stays(walk: Walk, call: Call, a: dict[str, Any]) -> str | None:
    """Why a norm's dim stays, or None where surgery keeps it exact."""
    if not walk.streams:
        return NORMALISED
    module, name = walk.module(call.node), walk.owner.get(id(a.get("weight")))
    if walk.norm_kind(call.node) is None or module is None or name is None or len(a["normalized_shape"]) > 1:
        return STRANGE
    if walk.captured.tensor(name) is not module._parameters.get("weight"):
        return STRANGE
    value: Labelled = a["input"]
    return None if value.zero[-1] or value.dims[-1] is None else LEVEL


def _stream(walk: Walk, value: Labelled, affine: list[Labelled]) -> Labelled:
    """A norm over a residual stream: what goes is zero before it, and is masked behind it."""
    last = len(value.shape) - 1
    if value.dims[last] is not None:
        walk.consumed.append(value.dims[last])  # type: ignore[arg-type]
    out = value.copy()
    out.dims[last] = walk.join([(value, last), *((part, 0) for part in affine)])
    out.zero = [False] * len(out.shape)
    out.zero[last] = all(part.zero[0] for part in affine)
    return out


def repaired(walk: Walk, call: Call, value: Labelled, dims: list[int]) -> bool:
    """Whether surgery mends a reduction: the one inside a written-out norm over a residual stream."""
    if not walk.streams or dims != [len(value.shape) - 1]:
        return False
    kind = walk.norm_kind(call.node)
    square = _squared(call.node.args[0])
    if kind == LAYER:
        # Its first sum, over the stream itself, is not mended: that one freezes what is not zero.
        return call.operator is aten.sum and square and type(walk.module(call.node)) is PrunedLayerNorm
    return kind is not None and call.operator is aten.mean and square and value.zero[-1]


def _squared(node: Any) -> bool:
    """Whether a node is the square of something."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    operator, first, *rest = Call(node).operator, *node.args
    if operator in (aten.to, aten._to_copy, aten.contiguous):
        return _squared(first)
    if operator is aten.mul:
        return first is rest[0]
    two = bool(rest) and isinstance(rest[0], (int, float)) and rest[0] == 2
    return operator is aten.square or (operator is aten.pow and two)


def _group_norm(walk: Walk, call: Call, a: dict[str, Any]) -> Labelled:
    """Whole groups may go: their statistics are their own."""
    out = _instance_norm(walk, call, a)
    labels = out.dims[1]
    if labels is not None:
        if a["num_groups"] == 1:
            walk.labels.freeze(labels, NORMALISED)
        else:
            groups = labels.reshape(a["num_groups"], -1)
            for column in range(1, groups.shape[1]):
                walk.labels.tie(groups[:, 0].copy(), groups[:, column].copy())
    return out


def _weight_norm(walk: Walk, call: Call, a: dict[str, Any]) -> Labelled:
    """w = g * v / |v|: rows of v keep their values (0/0 otherwise), g alone is masked. What reads a column
    of w reads that of v."""
    v, g = a["v"], a["g"]
    dim = a["dim"] % len(v.shape)
    out = v.copy()
    out.dims[dim] = walk.join([(v, dim), (g, dim)])
    if (name := walk.owner.get(id(v))) is not None:
        walk.unmasked.add((name, dim))
        walk.owner[id(out)] = name
        # What stands in a column of w hangs on the others of v, so that it is no plain column.
        walk.consumed += [labels for d, labels in enumerate(out.dims) if d != dim and labels is not None]
    return out


RULES = {
    aten.batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten._native_batch_norm_legit: _batch_norm,
    aten.native_batch_norm: _batch_norm,
    aten.instance_norm: _instance_norm,
    aten.layer_norm: _layer_norm,
    aten.native_layer_norm: _layer_norm,
    aten.rms_norm: _layer_norm,
    aten.group_norm: _group_norm,
    aten._weight_norm: _weight_norm,
}
