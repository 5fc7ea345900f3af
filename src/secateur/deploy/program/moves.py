"""What moves data in an exported graph, or leaves it as it is, and what becomes of it in a program."""

from __future__ import annotations

import math
from typing import Any

import torch

from secateur.deploy.program.emitting import (
    Arguments,
    Lowering,
    Refused,
    Rule,
    Turned,
    Value,
    beside_batch,
    is_constant,
)
from secateur.graph.calls import Call
from secateur.graph.operators import plain


def _same(made: Lowering, a: Arguments, call: Call) -> Any:
    x: Any = a.get("input", a.get("self"))
    if a.get("train") and a.get("p"):
        raise Refused("drops out even in eval mode")
    if call.shape != x.shape:
        raise Refused("repeats its input")
    return x


def _expand(made: Lowering, a: Arguments, call: Call) -> Any:
    x, shape = a["self"], tuple(call.shape or ())
    if shape == x.shape:
        return x
    if len(shape) != len(x.shape):
        raise Refused("repeats its input along new dims")
    return made.emit("expand", [x], shape)


def _repeat(made: Lowering, a: Arguments, call: Call) -> Any:
    x, repeats = a["self"], list(a["repeats"])
    if len(repeats) != len(x.shape) or repeats[0] != 1:
        raise Refused("works along the batch")
    for dim, number in enumerate(repeats):
        if number != 1:
            shape = (*x.shape[:dim], number * x.shape[dim], *x.shape[dim + 1 :])
            x = made.emit("cat", [x] * number, shape, dim=dim)
    return x


def _reshape(made: Lowering, a: Arguments, call: Call) -> Any:
    x: Any = a.get("self", a.get("input"))
    return x if call.shape == x.shape else made.emit("reshape", [x], call.shape)


def _permute(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["self"]
    sizes = list(range(2, 2 + len(x.shape)))  # all different: the result's sizes say which dim went where
    others = [v for key, v in a.items() if key != "self"]
    moved = plain(call.operator)(torch.empty(sizes, device="meta"), *others).shape
    return _permuted(made, x, [sizes.index(size) for size in moved])


def _permuted(made: Lowering, x: Value, dims: list[int]) -> Value:
    """Return a value with its dims in another order, which is only noted while the batch is not in front."""
    if isinstance(x, Turned):
        dims, x = [x.dims[dim] for dim in dims], x.source
    shape = tuple(x.shape[dim] for dim in dims)
    if dims == sorted(dims):
        return x
    if dims[0] != 0:
        return Turned(x.name, shape, x.dtype, source=x, dims=tuple(dims))
    return made.emit("permute", [x], shape, dims=dims)


def _slice(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["self"]
    step = a.get("step", 1)
    if "length" in a:
        a = {**a, "end": a["start"] + a["length"] if a["start"] >= 0 or a["start"] + a["length"] else None}
    start, stop, _ = slice(a["start"], a["end"], step).indices(x.shape[a["dim"]])
    if (start, stop, step) == (0, x.shape[a["dim"]], 1):
        return x
    return _sliced(made, x, beside_batch(a["dim"], x), start, stop, step)


def _sliced(made: Lowering, x: Any, dim: int, start: int, stop: int, step: int = 1) -> Any:
    size = len(range(start, stop, step))
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return made.emit("slice", [x], shape, dim=dim, start=start, stop=max(start, stop), step=step)


def _select(made: Lowering, a: Arguments, call: Call) -> Any:
    return _selected(made, a["self"], a["dim"], a["index"])


def _selected(made: Lowering, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.shape)
    if isinstance(x, Turned):
        source = _selected(made, x.source, x.dims[dim], index)
        left = [own - (own > x.dims[dim]) for at, own in enumerate(x.dims) if at != dim]
        return _permuted(made, source, left)
    dim, index = beside_batch(dim, x), index % x.shape[dim]
    part = _sliced(made, x, dim, index, index + 1)
    return made.emit("reshape", [part], (*x.shape[:dim], *x.shape[dim + 1 :]))


def _unbind(made: Lowering, a: Arguments, call: Call) -> Any:
    x, dim = a["self"], a.get("dim", 0)
    return [_selected(made, x, dim, index) for index in range(x.shape[dim])]


def _split(made: Lowering, a: Arguments, call: Call) -> Any:
    """chunk and split: one slice a part; what nobody reads is dropped later."""
    x = a["self"]
    dim, start, parts = beside_batch(a["dim"], x), 0, []
    for value in call.node.meta["val"]:
        parts.append(_sliced(made, x, dim, start, start + value.shape[dim]))
        start += value.shape[dim]
    return parts


def _pad(made: Lowering, a: Arguments, call: Call) -> Any:
    x, pads = a["self"], list(a["pad"])
    value = a.get("value") or 0.0
    if a.get("mode", "constant") != "constant" or min(pads) < 0 or not math.isfinite(value):
        raise Refused("pads with other than a finite constant, or cuts")
    pads += [0] * (2 * len(x.shape) - len(pads))
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    if before[0] or after[0]:
        raise Refused("works along the batch")
    return made.emit("pad", [x], call.shape, before=before[1:], after=after[1:], value=float(value))


def _cat(made: Lowering, a: Arguments, call: Call) -> Any:
    like = next(part for part in a["tensors"] if not is_constant(part))
    parts = [made.repeated(part, like) if is_constant(part) else part for part in a["tensors"]]
    return made.emit("cat", parts, call.shape, dim=beside_batch(a["dim"], like))


def _stack(made: Lowering, a: Arguments, call: Call) -> Any:
    like = next(part for part in a["tensors"] if not is_constant(part))
    dim, shape = a.get("dim", 0) % (len(like.shape) + 1), like.shape
    if dim == 0:
        raise Refused("works along the batch")
    parts = [made.repeated(part, like) if is_constant(part) else part for part in a["tensors"]]
    parts = [made.emit("reshape", [part], (*shape[:dim], 1, *shape[dim:])) for part in parts]
    return made.emit("cat", parts, call.shape, dim=dim)


def _roll(made: Lowering, a: Arguments, call: Call) -> Any:
    """Each dim cut in two, and joined the other way round."""
    x: Value = a["self"]
    if not a["dims"]:
        raise Refused("works along the batch")
    for shift, dim in zip(a["shifts"], a["dims"], strict=True):
        dim = beside_batch(dim, x)
        size = x.shape[dim]
        at = -shift % size
        if at:
            parts = [_sliced(made, x, dim, at, size), _sliced(made, x, dim, 0, at)]
            x = made.emit("cat", parts, x.shape, dim=dim)
    return x


_ATEN = torch.ops.aten
_UNCHANGED = (
    *(_ATEN.dropout, _ATEN.feature_dropout, _ATEN.alpha_dropout, _ATEN.feature_alpha_dropout),
    *(_ATEN.contiguous, _ATEN.clone, _ATEN.detach, _ATEN.alias, _ATEN.lift_fresh_copy),
    *(_ATEN.to, _ATEN._to_copy, _ATEN.type_as, _ATEN.positive),
)
_RESHAPED = (
    *(_ATEN.view, _ATEN.reshape, _ATEN._unsafe_view, _ATEN.view_as, _ATEN.reshape_as),
    *(_ATEN.flatten, _ATEN.unflatten, _ATEN.ravel, _ATEN.squeeze, _ATEN.unsqueeze),
)
_PERMUTED = (
    *(_ATEN.permute, _ATEN.transpose, _ATEN.t, _ATEN.mT, _ATEN.numpy_T),
    *(_ATEN.movedim, _ATEN.moveaxis, _ATEN.swapaxes, _ATEN.swapdims),
)
_CUT = (_ATEN.chunk, _ATEN.split, _ATEN.split_with_sizes, _ATEN.tensor_split)

MOVES: dict[Any, Rule] = {
    **dict.fromkeys(_UNCHANGED, _same),
    **dict.fromkeys((_ATEN.expand, _ATEN.expand_as), _expand),
    **dict.fromkeys(_RESHAPED, _reshape),
    **dict.fromkeys(_PERMUTED, _permute),
    **dict.fromkeys(_CUT, _split),
    **dict.fromkeys((_ATEN.slice, _ATEN.narrow), _slice),
    **dict.fromkeys((_ATEN.pad, _ATEN.constant_pad_nd), _pad),
    **dict.fromkeys((_ATEN.cat, _ATEN.concat, _ATEN.concatenate), _cat),
    _ATEN.stack: _stack,
    _ATEN.select: _select,
    _ATEN.unbind: _unbind,
    _ATEN.roll: _roll,
    _ATEN.repeat: _repeat,
}
