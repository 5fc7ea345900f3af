"""What moves data in an exported graph, or leaves it as it is, and what becomes of it in a program."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secateur.deploy.program.emitting import (
    Arguments,
    Constant,
    Lowering,
    Refused,
    Rule,
    Turned,
    Value,
    beside_batch,
    is_constant,
)
from secateur.deploy.program.turning import along, permuted, reshaped
from secateur.graph.calls import Call
from secateur.graph.operators import plain


def _same(made: Lowering, a: Arguments, call: Call) -> Any:
    x: Any = a.get("input", a.get("self"))
    if a.get("train") and a.get("p"):
        raise Refused("drops out even in eval mode")
    if call.shape != x.shape:
        raise Refused("repeats its input")
    return made.cast(x, call.node.meta["val"].dtype)


def _expand(made: Lowering, a: Arguments, call: Call) -> Any:
    x, shape = a["self"], tuple(call.shape or ())
    if shape == x.shape:
        return x
    if len(shape) != len(x.shape):
        raise Refused("repeats its input along new dims")
    return made.emit("expand", [x], shape)


def _like(made: Lowering, a: Arguments, call: Call) -> Any:
    """Numbers that only the shape of the input says."""
    return Constant(call.node.name, call.run(lambda node: torch.empty(node.meta["val"].shape)))


def _take(made: Lowering, a: Arguments, call: Call) -> Any:
    return taken(made, a["self"], a["dim"], a["index"])


def _index(made: Lowering, a: Arguments, call: Call) -> Any:
    """x[:, rows], x[:, :, keep]: one constant of one dim; or the examples in their order beside it, as masks
    of transformers have it."""
    x, given = a["self"], [(dim, index) for dim, index in enumerate(a["indices"]) if index is not None]
    if not isinstance(x, Value) or not all(is_constant(index) for _, index in given):
        raise Refused("indexes by several tensors, or a constant by the input")
    if len(given) == 2 and len(x.shape) == 2 and _examples(made, given[0][1].tensor):
        places = given[1][1].tensor
        shape = tuple(call.shape or ())
        if places.dim() == len(shape) and shape == (made.batch, *places.shape[1:]):
            return reshaped(made, taken(made, x, 1, Constant("", places.flatten())), shape)
    if len(given) != 1:
        raise Refused("indexes by several tensors, or a constant by the input")
    return taken(made, x, *given[0])


def _examples(made: Lowering, index: Tensor) -> bool:
    """Whether an index is every example in its order, along its first dim."""
    return index.shape[:1] == (made.batch,) and torch.equal(
        index.flatten(), torch.arange(made.batch, device=index.device)
    )


def _flip(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["self"]
    for dim in a["dims"]:
        x = taken(made, x, dim, Constant("", torch.arange(x.shape[dim]).flip(0)))
    return x


def taken(made: Lowering, x: Value, dim: int, index: Any) -> Value:
    """Return the entries of a dim that a constant says: indices, or True where they are."""
    if not is_constant(index) or index.tensor.dim() != 1:
        raise Refused("takes what the input says, or several dims of it")
    places = index.tensor.nonzero().flatten() if index.tensor.dtype == torch.bool else index.tensor
    numbers = (places % x.shape[dim]).tolist()

    def take(x: Value, dim: int) -> Value:
        shape = (*x.shape[:dim], len(numbers), *x.shape[dim + 1 :])
        return made.emit("take", [x], shape, dim=beside_batch(dim, x), indices=numbers)

    return along(x, dim, take)


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
    return reshaped(made, x, tuple(call.shape or ()))


def _permute(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["self"]
    sizes = list(range(2, 2 + len(x.shape)))  # all different: the result's sizes say which dim went where
    others = [v for key, v in a.items() if key != "self"]
    moved = plain(call.operator)(torch.empty(sizes, device="meta"), *others).shape
    return permuted(made, x, [sizes.index(size) for size in moved])


def _slice(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["self"]
    step = a.get("step", 1)
    if "length" in a:
        a = {**a, "end": a["start"] + a["length"] if a["start"] >= 0 or a["start"] + a["length"] else None}
    start, stop, _ = slice(a["start"], a["end"], step).indices(x.shape[a["dim"]])
    if (start, stop, step) == (0, x.shape[a["dim"]], 1):
        return x
    return _sliced(made, x, a["dim"], start, stop, step)


def _sliced(made: Lowering, x: Any, dim: int, start: int, stop: int, step: int = 1) -> Any:
    def cut(x: Value, dim: int) -> Value:
        shape = (*x.shape[:dim], len(range(start, stop, step)), *x.shape[dim + 1 :])
        settings: Arguments = {
            "dim": beside_batch(dim, x),
            "start": start,
            "stop": max(start, stop),
            "step": step,
        }
        return made.emit("slice", [x], shape, **settings)

    return along(x, dim, cut)


def _select(made: Lowering, a: Arguments, call: Call) -> Any:
    return _selected(made, a["self"], a["dim"], a["index"])


def _selected(made: Lowering, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.shape)
    index %= x.shape[dim]
    part = _sliced(made, x, dim, index, index + 1)
    return reshaped(made, part, (*x.shape[:dim], *x.shape[dim + 1 :]))


def _unbind(made: Lowering, a: Arguments, call: Call) -> Any:
    x, dim = a["self"], a.get("dim", 0)
    return [_selected(made, x, dim, index) for index in range(x.shape[dim])]


def _split(made: Lowering, a: Arguments, call: Call) -> Any:
    """chunk and split: one slice a part; what nobody reads is dropped later."""
    x = a["self"]
    dim, start, parts = a["dim"] % len(x.shape), 0, []
    for value in call.node.meta["val"]:
        parts.append(_sliced(made, x, dim, start, start + value.shape[dim]))
        start += value.shape[dim]
    return parts


def _pad(made: Lowering, a: Arguments, call: Call) -> Any:
    x, pads = a["self"], list(a["pad"])
    value, mode = a.get("value") or 0.0, a.get("mode", "constant")
    if not math.isfinite(value):
        raise Refused("pads with other than a finite constant")
    if mode != "constant":
        return _edges(made, x, pads, mode)
    for number, (first, last) in enumerate(zip(pads[0::2], pads[1::2], strict=True)):
        dim = len(x.shape) - 1 - number
        if min(first, last) < 0:
            x = _sliced(made, x, dim, max(0, -first), x.shape[dim] - max(0, -last))
    pads = [max(0, number) for number in pads]
    if not any(pads):
        return x
    pads += [0] * (2 * len(x.shape) - len(pads))
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    if before[0] or after[0]:
        raise Refused("works along the batch")
    return made.emit("pad", [x], call.shape, before=before[1:], after=after[1:], value=float(value))


def _padded_as(mode: str) -> Rule:
    return lambda made, a, call: _edges(made, a["self"], list(a["padding"]), mode)


def _edges(made: Lowering, x: Any, pads: list[int], mode: str) -> Any:
    """Pads that repeat what is there, one dim after the other."""
    for number, (before, after) in enumerate(zip(pads[0::2], pads[1::2], strict=True)):
        dim = len(x.shape) - 1 - number
        last, places = x.shape[dim] - 1, torch.arange(-before, x.shape[dim] + after)
        if mode == "reflect":
            places = last - (last - places.abs()).abs()
        elif mode == "replicate":
            places = places.clamp(0, last)
        if before or after:
            x = taken(made, x, dim, Constant("", places))
    return x


def _cat(made: Lowering, a: Arguments, call: Call) -> Any:
    parts = [part for part in a["tensors"] if not is_constant(part) or part.tensor.numel()]
    return _joined(made, parts, a.get("dim", 0))


def _stack(made: Lowering, a: Arguments, call: Call) -> Any:
    like = next(part for part in a["tensors"] if not is_constant(part))
    dim, shape = a.get("dim", 0) % (len(like.shape) + 1), like.shape
    parts = [made.repeated(part, like) if is_constant(part) else part for part in a["tensors"]]
    return _joined(made, [reshaped(made, part, (*shape[:dim], 1, *shape[dim:])) for part in parts], dim)


def _joined(made: Lowering, parts: list[Any], dim: int) -> Value:
    like = next(part for part in parts if not is_constant(part))
    kind = like.dtype if len({_kind(part) for part in parts}) == 1 else torch.float32
    parts = [made.cast(made.repeated(p, like) if is_constant(p) else p, kind) for p in parts]

    def join(x: Value, dim: int) -> Value:
        sources = [part.source if isinstance(part, Turned) else part for part in parts]
        if any(isinstance(p, Turned) and p.groups != like.groups for p in parts):
            raise Refused("joins values whose batches lie otherwise")
        size = sum(source.shape[dim] for source in sources)
        shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
        return made.emit("cat", sources, shape, dim=beside_batch(dim, x))

    return along(like, dim, join)


def _kind(part: Any) -> torch.dtype:
    return part.tensor.dtype if is_constant(part) else part.dtype


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
_LIKE = (
    *(_ATEN.zeros_like, _ATEN.ones_like, _ATEN.full_like),
    *(_ATEN.new_zeros, _ATEN.new_ones, _ATEN.new_full),
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
    _ATEN.index_select: _take,
    _ATEN.index: _index,
    _ATEN.flip: _flip,
    **dict.fromkeys((_ATEN.reflection_pad1d, _ATEN.reflection_pad2d), _padded_as("reflect")),
    **dict.fromkeys((_ATEN.replication_pad1d, _ATEN.replication_pad2d), _padded_as("replicate")),
    **dict.fromkeys(_LIKE, _like),
    _ATEN.select: _select,
    _ATEN.unbind: _unbind,
    _ATEN.roll: _roll,
    _ATEN.repeat: _repeat,
}
