"""What moves data in an exported graph, or leaves it as it is, and what becomes of it in a program."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from secateur.deploy.terms import Arguments, Refused, Rule, beside_batch, is_constant, shape_of

if TYPE_CHECKING:
    from secateur.deploy.lowering import Lowering


def _same(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    x: Any = a.get("input", a.get("self"))
    if a.get("train") and a.get("p"):
        raise Refused("drops out even in eval mode")
    if shape_of(node) != x.shape:
        raise Refused("repeats its input")
    return x


def _reshape(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    x: Any = a.get("self", a.get("input"))
    return x if shape_of(node) == x.shape else made.emit("reshape", [x], shape_of(node))


def _permute(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    x = a["self"]
    sizes = list(range(2, 2 + len(x.shape)))  # all different: the result's sizes say which dim went where
    others = [v for key, v in a.items() if key != "self"]
    target: Any = node.target
    moved = target(torch.empty(sizes, device="meta"), *others).shape
    dims = [sizes.index(size) for size in moved]
    if dims and dims[0] != 0:
        raise Refused("moves the batch")
    return x if dims == sorted(dims) else made.emit("permute", [x], shape_of(node), dims=dims)


def _slice(made: Lowering, a: Arguments, node: fx.Node) -> Any:
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


def _select(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    dim = beside_batch(a["dim"], a["self"])
    index = a["index"] % a["self"].shape[dim]
    return made.emit("reshape", [_sliced(made, a["self"], dim, index, index + 1)], shape_of(node))


def _split(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    """chunk, split and unbind: one slice a part; what nobody reads is dropped later."""
    x = a["self"]
    dim, start, parts = beside_batch(a["dim"], x), 0, []
    for value in node.meta["val"]:
        size = value.shape[dim] if value.dim() == len(x.shape) else 1
        part = _sliced(made, x, dim, start, start + size)
        parts.append(part if value.dim() == len(x.shape) else made.emit("reshape", [part], value.shape))
        start += size
    return parts


def _pad(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    x, pads = a["self"], list(a["pad"])
    value = a.get("value") or 0.0
    if a.get("mode", "constant") != "constant" or min(pads) < 0 or not math.isfinite(value):
        raise Refused("pads with other than a finite constant, or cuts")
    pads += [0] * (2 * len(x.shape) - len(pads))
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    if before[0] or after[0]:
        raise Refused("works along the batch")
    return made.emit("pad", [x], shape_of(node), before=before[1:], after=after[1:], value=float(value))


def _cat(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    if any(is_constant(part) for part in a["tensors"]):
        raise Refused("joins a constant to what depends on the input")
    return made.emit("cat", a["tensors"], shape_of(node), dim=beside_batch(a["dim"], a["tensors"][0]))


_UNCHANGED = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "contiguous",
    "clone",
    "detach",
    "alias",
    "lift_fresh_copy",
    "to",
    "_to_copy",
    "positive",
    "expand",
    "expand_as",
)
_RESHAPED = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "_unsafe_view",
    "ravel",
    "view_as",
    "reshape_as",
)

MOVES: dict[str, Rule] = {
    **dict.fromkeys(_UNCHANGED, _same),
    **dict.fromkeys(_RESHAPED, _reshape),
    **dict.fromkeys(
        ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "numpy_T"),
        _permute,
    ),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind", "tensor_split"), _split),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "select": _select,
}
