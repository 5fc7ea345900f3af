"""How each operator of a program becomes instructions of the compiled kernels, on the places of its values.

Every function takes (workspace, node, the places it reads, the weights by name) and returns the place of
its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .activations import ACTIVATIONS
from .codes import COLUMNS, COMBINE, POOL, ROWS, SCALE, SOFTMAX, VECTOR
from .convolution import Operator, Weights, activated, clamp_of, pair, plan_conv
from .workspace import Place, UnsupportedError, Workspace, sizes

_DENSE_COLUMNS = 0.4  # of the entries of a matrix: from here on its columns are taken whole

# -- layers -----------------------------------------------------------------------------------------------


def _plan_linear(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    source, weight = given[0], weights[node["weight"]]
    if not source.flat:
        raise UnsupportedError("a linear layer over more than features")
    out = space.new([len(weight)])
    bias = space.vector(None if node["bias"] is None else weights[node["bias"]])
    clamp = clamp_of(space, node)
    if space.batch > 1:
        rows, columns = np.nonzero(weight)
        first = space.rows(weight[rows, columns], rows, len(weight), columns * source.plane)
        residual = given[1].offset if len(given) == 2 else -1
        row = [ROWS, source.offset, out.offset, len(weight), source.plane, out.plane]
        space.table.append([*row, first, bias, -1, residual, clamp])
    else:
        columns, rows = np.nonzero(weight.T)
        row = [source.offset, out.offset, weight.shape[1], len(weight)]
        if len(rows) < _DENSE_COLUMNS * weight.size:
            first, shift = space.columns(weight[rows, columns], columns, weight.shape[1], rows)
            sums = space.vector(weight.sum(1, dtype=np.float64))
            space.table.append([VECTOR, *row, first, bias, clamp, sums, shift])
        else:
            space.table.append([COLUMNS, *row, space.vector(weight.T), bias, clamp])
    return activated(space, node, node.get("activation"), out)


# -- pools ------------------------------------------------------------------------------------------------


def _plan_pool(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    source, kernel, stride = given[0], pair(node["kernel"], 1), pair(node["stride"], 1)
    padding = pair(node["padding"], 0)
    largest = node["op"] == "max_pool"
    if source.flat or (largest and pair(node["dilation"], 1) != (1, 1)):
        raise UnsupportedError("a pool over features, or a dilated one")
    counted = 0
    if not largest and node["divisor"] is not None:
        counted = node["divisor"]
    elif not largest and node["count_padding"]:
        counted = kernel[0] * kernel[1]
        shape, image = sizes(node["shape"])[1:], (source.height, source.width)
        for out, size, k, s, p in zip(shape, image, kernel, stride, padding, strict=True):
            if (out - 1) * s + k > size + 2 * p:
                raise UnsupportedError("a mean over windows that reach beyond the padding")
    out = space.clear(space.new(node["shape"]))
    return _plan_pooled(space, source, out, (*kernel, *stride, *padding), largest, counted)


def _plan_pooled(
    space: Workspace, source: Place, out: Place, windows: Sequence[int], largest: bool, counted: float
) -> Place:
    row = [POOL, source.offset, out.offset, source.channels, space.batch, source.height, source.width]
    row += [source.plane, source.image, source.row, out.plane, out.image, out.row, out.height, out.width]
    space.table.append([*row, *windows, int(largest), int(counted)])
    return out


def _plan_reduced(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    """The mean, sum or maximum over all positions of an image."""
    source, kind = given[0], node["op"]
    dims = len(node["shape"]) + 1 + (0 if node["keepdim"] else len(node["dims"]))
    if source.flat or sorted(node["dims"]) != list(range(2, dims)):
        raise UnsupportedError(f"{kind} over dims {list(node['dims'])}")
    out = space.clear(space.new(node["shape"]))
    windows = (source.height, source.width, 1, 1, 0, 0)
    return _plan_pooled(space, source, out, windows, kind == "amax", 1 if kind == "sum" else 0)


# -- entry by entry ---------------------------------------------------------------------------------------


def _plan_combine(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    kind = ("add", "sub", "mul", "div").index(node["op"])
    if len(given) == 1:
        return _with_number(space, node, given[0], weights)
    a, b = given
    if replace(a, offset=0) != replace(b, offset=0):
        raise UnsupportedError(f"{node['op']} of values of different shapes")
    out = space.new(node["shape"])
    row = [COMBINE, a.offset, b.offset, out.offset, a.channels, a.plane, space.mask(a), kind]
    space.table.append([*row, clamp_of(space, node)])
    return out


def _with_number(space: Workspace, node: Operator, source: Place, weights: Weights) -> Place:
    """An operand that is a number, or one number a channel."""
    kind, number = node["op"], node.get("scalar")
    if number is None:
        tensor = weights[node["tensor"]]
        dims = len(node["shape"])
        shape = (*(1,) * (dims + 1 - tensor.ndim), *tensor.shape)
        per_channel = tensor.reshape(shape)[0] if tensor.ndim else tensor
        if per_channel.size not in (1, source.channels) or per_channel.shape[1:] != (1,) * (dims - 1):
            raise UnsupportedError(f"{kind} with a tensor of shape {tensor.shape}")
        number = per_channel.reshape(-1)
    numbers = np.broadcast_to(np.asarray(number, np.float32).reshape(-1), source.channels)
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    if kind == "div" and node["reversed"]:
        raise UnsupportedError("a number divided by a value")
    with np.errstate(divide="ignore"):
        inverse = 1 / numbers
    scale, shift = {
        "add": (one, numbers),
        "sub": (-one, numbers) if node["reversed"] else (one, -numbers),
        "mul": (numbers, zero),
        "div": (inverse, zero),
    }[kind]
    return _plan_scaled(space, node, source, scale, shift)


def _plan_scale(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    return _plan_scaled(space, node, given[0], weights[node["scale"]], weights[node["shift"]])


def _plan_scaled(
    space: Workspace, node: Operator, source: Place, scale: np.ndarray, shift: np.ndarray
) -> Place:
    out = space.new(node["shape"])
    row = [SCALE, source.offset, out.offset, source.channels, source.plane, space.mask(source)]
    space.table.append([*row, space.vector(scale), space.vector(shift), clamp_of(space, node)])
    return out


def _plan_elementwise(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    source, name = given[0], node["op"]
    if ACTIVATIONS[name].bounds is None:
        return activated(space, node, name, source, space.new(node["shape"]))
    one = np.ones(source.channels, np.float32)
    return _plan_scaled(space, {**node, "activation": name}, source, one, 0 * one)


def _plan_softmax(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    source = given[0]
    if node["dim"] not in (1, -1) or not source.flat:
        raise UnsupportedError(f"{node['op']} over dim {node['dim']}")
    out = space.new(node["shape"])
    row = [SOFTMAX, source.offset, out.offset, source.channels, source.plane]
    space.table.append([*row, int(node["op"] == "log_softmax")])
    return out


# -- moving data ------------------------------------------------------------------------------------------


def _plan_reshape(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    """Between positions and features; anything else is a mixture that planes cannot hold."""
    source, shape = given[0], tuple(node["shape"])
    if "rows" in node:
        raise UnsupportedError("several rows an example")
    out = space.clear(space.new(shape))
    if source.flat == out.flat and source.shape != out.shape:
        raise UnsupportedError(f"a reshape from {source.shape} to {shape}")
    if source.flat == out.flat:
        space.copy(source, out)
        return out
    wide, features = (out, source) if source.flat else (source, out)
    steps = (wide.height * wide.width, wide.width, 1)
    dims = [(space.batch, wide.image, features.image)]
    for size, own, step in zip(wide.shape, (wide.plane, wide.row, 1), steps, strict=True):
        dims.append((size, own, step * features.plane))
    if source.flat:
        dims = [(size, there, here) for size, here, there in dims]
    space.block(dims, source, out)
    return out


def _plan_slice(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    source, out = given[0], space.clear(space.new(node["shape"]))
    steps = [source.plane, source.row, 1]
    axis = _axes(node)[node["dim"] - 1]
    start, _, step = slice(node["start"], node["stop"], node["step"]).indices(sizes(source.shape)[axis])
    first = replace(source, offset=source.offset + start * steps[axis])
    steps[axis] *= step
    dims = zip((out.channels, out.height, out.width), steps, (out.plane, out.row, 1), strict=True)
    space.block([*dims, (space.batch, source.image, out.image)], first, out)
    return out


def _plan_pad(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    source = given[0]
    if node["value"] != 0 or min(*node["before"], *node["after"]) < 0:
        raise UnsupportedError("a pad with anything but zeros")
    out = space.clear(space.new(node["shape"]))
    steps = [out.plane, out.row, 1]
    offset = out.offset + sum(n * steps[axis] for axis, n in zip(_axes(node), node["before"], strict=True))
    space.copy(source, replace(out, offset=offset))
    return out


def _plan_cat(space: Workspace, node: Operator, given: Sequence[Place], weights: Weights) -> Place:
    out = space.clear(space.new(node["shape"]))
    axis, at = _axes(node)[node["dim"] % (len(node["shape"]) + 1) - 1], out.offset
    steps = [out.plane, out.row, 1]
    for source in given:
        space.copy(source, replace(out, offset=at))
        at += sizes(source.shape)[axis] * steps[axis]
    return out


def _axes(node: Operator) -> list[int]:
    """Which of (channels, height, width) each dim of a node's shape is."""
    return {1: [0], 2: [0, 2], 3: [0, 1, 2]}[len(node["shape"])]


INSTRUCTIONS: dict[str, Callable[[Workspace, Operator, Sequence[Place], Weights], Place]] = {
    "linear": _plan_linear,
    "conv": plan_conv,
    "max_pool": _plan_pool,
    "avg_pool": _plan_pool,
    **dict.fromkeys(("mean", "sum", "amax"), _plan_reduced),
    **dict.fromkeys(("add", "sub", "mul", "div"), _plan_combine),
    "scale": _plan_scale,
    **dict.fromkeys(("softmax", "log_softmax"), _plan_softmax),
    "reshape": _plan_reshape,
    "slice": _plan_slice,
    "pad": _plan_pad,
    "cat": _plan_cat,
    **dict.fromkeys(ACTIVATIONS, _plan_elementwise),
}
