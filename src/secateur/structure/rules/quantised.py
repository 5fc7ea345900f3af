"""Rules of fake quantisation, by which networks are trained for integers: entry by entry, zero to zero."""

from __future__ import annotations

from typing import Any

import torch

from secateur.graph.calls import Call
from secateur.structure.propagate import Labelled, Walk

aten = torch.ops.aten
_BY_CHANNEL = ("scale", "zero_point", "running_min", "running_max")


def _fake_quantised(walk: Walk, call: Call, a: dict[str, Any]) -> Any:
    """Scales of single channels go with them; one of a whole tensor is that of what stays, for zero is always
    within its range."""
    value: Labelled = a["self"]
    out = value.copy()
    axis = a.get("ch_axis", a.get("axis"))
    if axis is not None and a.get("per_row_fake_quant", True):
        axis %= len(value.shape)
        parts = [a[name] for name in _BY_CHANNEL if isinstance(a.get(name), Labelled)]
        parts = [part for part in parts if part.shape == (value.shape[axis],)]
        for part in parts:
            if part.dims[0] is None and value.dims[axis] is not None and id(part) in walk.owner:
                part.dims[0] = walk.fresh(part.shape[0])  # whole numbers have labels here alone
        if value.dims[axis] is not None:
            out.dims[axis] = walk.join([(value, axis), *((part, 0) for part in parts)])
    if (name := walk.owner.get(id(value))) is not None:
        walk.owner[id(out)] = name
    return [out, value.copy()] if isinstance(call.node.meta.get("val"), (list, tuple)) else out


RULES: dict[Any, Any] = dict.fromkeys(
    (
        aten.fused_moving_avg_obs_fake_quant,
        aten._fused_moving_avg_obs_fq_helper,
        aten.fake_quantize_per_tensor_affine,
        aten.fake_quantize_per_tensor_affine_cachemask,
        aten.fake_quantize_per_channel_affine,
        aten.fake_quantize_per_channel_affine_cachemask,
        aten._fake_quantize_learnable_per_tensor_affine,
        aten._fake_quantize_learnable_per_channel_affine,
    ),
    _fake_quantised,
)
