"""What makes images of an exported graph larger or smaller: resizing, adaptive pools, transposed layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.deploy.program.emitting import (
    Arguments,
    Constant,
    Lowering,
    Refused,
    Rule,
    Value,
    beside_batch,
    is_constant,
)
from secateur.deploy.program.turning import permuted, reshaped
from secateur.graph.calls import Call

_ATEN = torch.ops.aten


def each(value: Any, spatial: int) -> list[int]:
    """One number a spatial dim: PyTorch lets one stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * spatial if len(values) == 1 else values


def _resized(spatial: int, mode: str) -> Rule:
    """Along one dim after the other, as PyTorch resizes a ramp: what it takes is what it puts out."""

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        x: Any = a.get("input", a.get("self"))
        if not isinstance(x, Value):
            raise Refused("works on a constant where it should on an input")
        factors = a.get("scale_factors") or [a.get("scales"), a.get("scales_h"), a.get("scales_w")][-spatial:]
        for number, factor in enumerate(factors):
            dim = beside_batch(len(x.shape) - spatial + number, x)
            size, wanted = x.shape[dim], (call.shape or ())[dim]
            ramp = torch.arange(size, dtype=torch.float64)[None, None]
            found = _by_torch(ramp, [wanted], [factor], mode, a.get("align_corners"))
            x = _taken(made, x, dim, found[0, 0])
        return x

    return rule


def _by_torch(
    x: Tensor, sizes: list[int], factors: list[float | None], mode: str, corners: bool | None
) -> Tensor:
    by_size = factors[0] is None
    factor = None if by_size else factors
    return F.interpolate(x, sizes if by_size else None, factor, mode, corners)  # type: ignore[arg-type]


def _taken(made: Lowering, x: Value, dim: int, places: Tensor) -> Value:
    """Entries at places, which may lie between two of them."""
    size, shape = x.shape[dim], (*x.shape[:dim], len(places), *x.shape[dim + 1 :])
    low = places.floor()
    if torch.equal(low, places):
        whole = [int(place) for place in low.tolist()]
        return x if whole == list(range(size)) else made.emit("take", [x], shape, dim=dim, indices=whole)
    entries: Arguments = {"low": low.long().tolist(), "high": (low + 1).clamp(max=size - 1).long().tolist()}
    return made.emit("mix", [x], shape, dim=dim, **entries, share=(places - low).tolist())


def _by_matrix(made: Lowering, x: Value, dim: int, matrix: Tensor, name: str) -> Value:
    """Multiply along a dim by a matrix (new size, size)."""
    last = len(x.shape) - 1
    order = [*(d for d in range(last + 1) if d != dim), dim]
    x = permuted(made, x, order)
    weight = made.tensor(Constant(name, matrix.float()))
    x = made.emit("linear", [x], (*x.shape[:-1], len(matrix)), weight=weight, bias=None)
    return permuted(made, x, [order.index(d) for d in range(last + 1)])


def _bicubic(made: Lowering, a: Arguments, call: Call) -> Any:
    x: Any = a.get("input", a.get("self"))
    factors = a.get("scale_factors") or [a.get("scales_h"), a.get("scales_w")]
    for number, factor in enumerate(factors):
        dim = beside_batch(len(x.shape) - 2 + number, x)
        size, wanted = x.shape[dim], (call.shape or ())[dim]
        whole = torch.eye(size, dtype=torch.float64)[None, None]
        matrix = _by_torch(whole, [wanted, size], [factor, 1.0], "bicubic", a["align_corners"])[0, 0]
        x = _by_matrix(made, x, dim, matrix, f"{call.node.name}.{number}")
    return x


# -- adaptive pools --------------------------------------------------------------------------------------


def _adaptive(spatial: int, op: str) -> Rule:
    """A pool where the sizes divide; else a mean is a product along each dim, a maximum one of slices."""

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        x, value = a["self"], call.node.meta["val"]
        shape = tuple((value[0] if op == "max_pool" else value).shape)
        sizes = list(zip(x.shape[-spatial:], shape[-spatial:], strict=True))
        kernel = [size // out for size, out in sizes if size % out == 0]
        if len(kernel) == spatial:
            settings: Arguments = {"kernel": kernel, "stride": kernel, "padding": [0] * spatial}
            mean: Arguments = {"count_padding": True, "divisor": None}
            more: Arguments = {"dilation": [1] * spatial} if op == "max_pool" else mean
            x = made.emit(op, [x], shape, **settings, **more)
        else:
            for dim, (size, out) in enumerate(sizes, start=len(x.shape) - spatial):
                spans = [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
                if op == "max_pool":
                    x = _largest(made, x, dim, spans)
                elif size != out:
                    x = _by_matrix(made, x, dim, _means(spans, size), f"{call.node.name}.{dim}")
        return [x, None] if op == "max_pool" else x

    return rule


def _means(spans: list[tuple[int, int]], size: int) -> Tensor:
    matrix = torch.zeros(len(spans), size)
    for row, (start, stop) in zip(matrix, spans, strict=True):
        row[start:stop] = 1 / (stop - start)
    return matrix


def _largest(made: Lowering, x: Value, dim: int, spans: list[tuple[int, int]]) -> Value:
    def of(start: int, stop: int) -> Value:
        shape = (*x.shape[:dim], stop - start, *x.shape[dim + 1 :])
        part = made.emit("slice", [x], shape, dim=dim, start=start, stop=stop, step=1)
        return made.emit("amax", [part], (*shape[:dim], 1, *shape[dim + 1 :]), dims=[dim], keepdim=True)

    shape = (*x.shape[:dim], len(spans), *x.shape[dim + 1 :])
    return made.emit("cat", [of(*span) for span in spans], shape, dim=dim)


# -- transposed convolutions, pixels and channels ----------------------------------------------------------


def _conv_transpose(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["input"]
    spatial = len(x.shape) - 2
    if not is_constant(a["weight"]):
        raise Refused("has a weight that is computed from the input")
    settings: Arguments = {name: each(a[name], spatial) for name in ("stride", "padding", "dilation")}
    settings |= {name: made.tensor(a[name]) for name in ("weight", "bias")}
    settings |= {"kernel": list(a["weight"].tensor.shape[2:]), "groups": a["groups"]}
    return made.emit("conv_transpose", [x], call.shape, **settings)


def _pixel_shuffle(made: Lowering, a: Arguments, call: Call) -> Any:
    x, r = a["self"], a["upscale_factor"]
    batch, channels, height, width = x.shape
    x = reshaped(made, x, (batch, channels // (r * r), r, r, height, width))
    return reshaped(made, permuted(made, x, [0, 1, 4, 2, 5, 3]), tuple(call.shape or ()))


def _pixel_unshuffle(made: Lowering, a: Arguments, call: Call) -> Any:
    x, r = a["self"], a["downscale_factor"]
    batch, channels, height, width = x.shape
    x = reshaped(made, x, (batch, channels, height // r, r, width // r, r))
    return reshaped(made, permuted(made, x, [0, 1, 3, 5, 2, 4]), tuple(call.shape or ()))


RESAMPLED: dict[Any, Rule] = {
    _ATEN.upsample_nearest1d: _resized(1, "nearest"),
    _ATEN.upsample_nearest2d: _resized(2, "nearest"),
    _ATEN._upsample_nearest_exact1d: _resized(1, "nearest-exact"),
    _ATEN._upsample_nearest_exact2d: _resized(2, "nearest-exact"),
    _ATEN.upsample_linear1d: _resized(1, "linear"),
    _ATEN.upsample_bilinear2d: _resized(2, "linear"),
    _ATEN.upsample_bicubic2d: _bicubic,
    _ATEN.adaptive_avg_pool1d: _adaptive(1, "avg_pool"),
    _ATEN.adaptive_avg_pool2d: _adaptive(2, "avg_pool"),
    _ATEN.adaptive_max_pool1d: _adaptive(1, "max_pool"),
    _ATEN.adaptive_max_pool2d: _adaptive(2, "max_pool"),
    **dict.fromkeys((_ATEN.conv_transpose1d, _ATEN.conv_transpose2d), _conv_transpose),
    _ATEN.pixel_shuffle: _pixel_shuffle,
    _ATEN.pixel_unshuffle: _pixel_unshuffle,
}
