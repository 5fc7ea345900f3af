"""How a convolution becomes rows of non-zeros times planes, and what follows a layer: clamps, activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .activations import ACTIVATIONS
from .codes import ACTIVATE, ROWS
from .workspace import Place, UnsupportedError, Workspace, sizes

Operator = Mapping[str, Any]
Weights = Mapping[str, np.ndarray]
_KINDS = {name: kind for kind, name in enumerate(ACTIVATIONS)}  # as the kernels count them


def clamp_of(space: Workspace, node: Operator) -> int:
    """Return where the bounds are that a layer clamps to."""
    name = node.get("activation")
    bounds = None if name is None else ACTIVATIONS[name].bounds
    return space.constant(*((-math.inf, math.inf) if bounds is None else bounds(node)))


def activated(
    space: Workspace, node: Operator, name: str | None, source: Place, out: Place | None = None
) -> Place:
    """Apply an activation that is no clamp, in place or into ``out``."""
    out = source if out is None else out
    if name is None or ACTIVATIONS[name].bounds is not None:
        return out
    if ACTIVATIONS[name].kernel is None:
        raise UnsupportedError(f"the activation {name}")
    settings = [float(node[setting]) for setting in ACTIVATIONS[name].settings]
    row = [ACTIVATE, source.offset, out.offset, source.channels, source.plane, space.mask(source)]
    space.table.append([*row, _KINDS[name], space.constant(*[*settings, 0.0, 0.0][:2])])
    return out


def pair(numbers: Sequence[int], missing: int) -> tuple[int, int]:
    """Return settings of one spatial dim or two as (height, width)."""
    return (missing, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def plan_conv(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    """A weight at (o, c, y, x) is a non-zero of row o, at the address of (c, y, x) from where a plane begins.

    With a stride the planes are first taken apart into its phases, in which the stride is 1. What is
    smaller than those planes is written as if it were not, and copied where its readers care (not "wide").
    """
    source, weight = given[0], weights[node["weight"]]
    if source.flat:
        raise UnsupportedError("a convolution over features")
    weight = weight.reshape(*weight.shape[:2], *pair(weight.shape[2:], 1))
    stride, padding, dilation = (
        pair(node[n], d) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    shape = sizes(node["shape"])
    grown = None
    if any(o > -(-n // s) for o, n, s in zip(shape[1:], (source.height, source.width), stride, strict=True)):
        source = grown = _padded_place(space, source, padding)  # there are more outputs than columns
        padding = (0, 0)
    o, c, y, x = np.nonzero(weight)
    down = [np.arange(weight.shape[2 + i]) * dilation[i] - padding[i] for i in (0, 1)]
    used = [_meets_image(down[i], stride[i], shape[1 + i], sizes(source.shape)[1 + i]) for i in (0, 1)]
    keep = used[0][y] & used[1][x]
    o, c, y, x = o[keep], c[keep], y[keep], x[keep]
    numbers = weight[o, c, y, x]
    c = c + o // (len(weight) // node["groups"]) * weight.shape[1]
    y, x = down[0][y], down[1][x]
    planes = source
    if stride != (1, 1):
        phase = y % stride[0] * stride[1] + x % stride[1]
        found = np.unique(phase)
        planes = _phases(space, source, [divmod(int(p), stride[1]) for p in found], stride)
        c, y, x = np.searchsorted(found, phase) * source.channels + c, y // stride[0], x // stride[1]
    addresses = c * planes.plane + y * planes.row + x + planes.before
    first = space.rows(numbers, o, len(weight), addresses)
    bias = space.vector(None if node["bias"] is None else weights[node["bias"]])
    direct = (planes.height, planes.width) == shape[1:]
    out = space.new(node["shape"]) if direct else space.like(planes, len(weight))
    mask = space.mask(out) if direct else -1
    residual = given[1].offset if len(given) == 2 else -1
    row = [ROWS, planes.offset - planes.before, out.offset, len(weight), planes.plane, out.plane]
    space.table.append([*row, first, bias, mask, residual, clamp_of(space, node)])
    for place in (planes if planes is not source else None, grown):
        if place is not None:
            space.release(place)
    if not direct and node["wide"]:
        out = replace(out, height=shape[1], width=shape[2])
    elif not direct:
        wide, out = out, space.clear(space.new(node["shape"]))
        space.copy(wide, out)
        space.release(wide)
    return activated(space, node, node.get("activation"), out)


def _padded_place(space: Workspace, source: Place, padding: tuple[int, int]) -> Place:
    """Copy a value into a larger one, with the zeros around it as part of its images."""
    (down, right), shape = padding, (source.channels, source.height, source.width)
    out = space.clear(space.new([shape[0], shape[1] + 2 * down, shape[2] + 2 * right]))
    space.copy(source, replace(out, offset=out.offset + down * out.row + right))
    return out


def _meets_image(offsets: np.ndarray, stride: int, outputs: int, inputs: int) -> np.ndarray:
    """Which offsets of a kernel ever fall on the image, and not on its border alone."""
    positions = offsets[:, None] + stride * np.arange(outputs)
    return np.asarray(((positions >= 0) & (positions < inputs)).any(1))


def _phases(
    space: Workspace, source: Place, phases: Sequence[tuple[int, int]], stride: tuple[int, int]
) -> Place:
    """Take every ``stride``-th row and column, once for each first of them."""
    height, width = -(-source.height // stride[0]), -(-source.width // stride[1])
    out = space.clear(space.new([source.channels * len(phases), height, width]))
    for i, (y, x) in enumerate(phases):
        dims = [
            (source.channels, source.plane, out.plane),
            (space.batch, source.image, out.image),
            (-(-(source.height - y) // stride[0]), stride[0] * source.row, out.row),
            (-(-(source.width - x) // stride[1]), stride[1], 1),
        ]
        first = replace(source, offset=source.offset + y * source.row + x)
        space.block(dims, first, replace(out, offset=out.offset + i * source.channels * out.plane))
    return out
