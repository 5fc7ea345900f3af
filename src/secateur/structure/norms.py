"""Rules of the normalisations."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.propagate import Value, Walk

NORMALISED = "normalised over"


def _batch_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value | list[Value]:
    value: Value = a["input"]
    out = value.copy()
    parts = [a.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    known = [(p, 0) for p in parts if isinstance(p, Value)]
    if a.get("training") and a.get("running_mean") is None and len(value.shape) > 1:
        walk.freeze(value, [0], "batch statistics")
    out.dims[1] = walk.join([(value, 1), *known])
    scaled = isinstance(a.get("weight"), Value) and a["weight"].zero[0]
    shifted = isinstance(a.get("bias"), Value)
    out.zero = [False] * len(out.shape)
    out.zero[1] = scaled and (not shifted or a["bias"].zero[0])
    return [out, Value.plain((0,)), Value.plain((0,))] if isinstance(node.meta["val"], (list, tuple)) else out


def _instance_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value: Value = a["input"]
    out = value.copy()
    parts = [a.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    known = [(p, 0) for p in parts if isinstance(p, Value)]
    walk.freeze(value, range(2, len(value.shape)), NORMALISED)
    out.dims[1] = walk.join([(value, 1), *known])
    weight = a.get("weight")
    out.zero = [False] * len(out.shape)
    out.zero[1] = weight.zero[0] if isinstance(weight, Value) else value.zero[1]
    return out


def _layer_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value: Value = a["input"]
    number = len(a["normalized_shape"])
    first = len(value.shape) - number
    walk.freeze(value, range(first, len(value.shape)), NORMALISED)
    for part in (a.get("weight"), a.get("bias")):
        if isinstance(part, Value):
            walk.freeze(part, range(number), NORMALISED)
    out = value.copy()
    out.zero = [False] * len(out.shape)
    return out


def _group_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """Whole groups may go: their statistics are their own."""
    value: Value = a["input"]
    out = value.copy()
    known = [(p, 0) for p in (a.get("weight"), a.get("bias")) if isinstance(p, Value)]
    walk.freeze(value, range(2, len(value.shape)), NORMALISED)
    out.dims[1] = walk.join([(value, 1), *known])
    labels = out.dims[1]
    if labels is not None:
        if a["num_groups"] == 1:
            walk.labels.freeze(labels, NORMALISED)
        else:
            groups = labels.reshape(a["num_groups"], -1)
            for column in range(1, groups.shape[1]):
                walk.labels.tie(groups[:, 0].copy(), groups[:, column].copy())
    weight = a.get("weight")
    out.zero = [False] * len(out.shape)
    out.zero[1] = weight.zero[0] if isinstance(weight, Value) else value.zero[1]
    return out


def _weight_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """w = g * v / |v|: rows of v keep their values (0/0 otherwise), g alone is masked."""
    v, g = a["v"], a["g"]
    dim = a["dim"] % len(v.shape)
    out = v.copy()
    out.dims[dim] = walk.join([(v, dim), (g, dim)])
    for node_v, name in walk.named.items():
        if walk.values.get(node_v) is v:
            walk.unmasked.add((name, dim))
    return out


RULES = {
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "native_batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "_weight_norm": _weight_norm,
}
