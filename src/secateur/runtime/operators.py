"""Every operator of a program (see ``secateur.deploy.program.export``), in numpy alone, the batch first.

An operator takes (node, inputs, tensors): its entry in the program, the arrays it reads, the weights by
name. It returns a new array or a view of its input, and never writes into what it was given. A weight is
an array, or a sparse matrix of (outputs, inputs x kernel): a scipy one or, of a linear layer, ``Rows``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from .activations import ACTIVATIONS
from .recurrent import STEPS, run_recurrent
from .resampling import conv_transpose, mix, take

Array = np.ndarray
Node = Mapping[str, Any]
Inputs = Sequence[Array]
Tensors = Mapping[str, Any]

_BLOCK = 1 << 18  # numbers of unfolded input that a convolution holds at a time: they stay in the cache
_FEW = 4  # vectors that a sparse product in numpy takes one by one; from there on a dense one is faster


class Rows:
    """A sparse matrix that multiplies a few vectors in numpy alone, and becomes a dense one for many.

    ``positions``: where the ``values`` are in the flat C-order matrix, ascending.
    """

    def __init__(self, shape: tuple[int, int], positions: Array, values: Array) -> None:
        self.shape = shape
        self.values = values
        self.columns = (positions % shape[1]).astype(np.int32)
        bounds = np.searchsorted(positions, np.arange(shape[0] + 1) * shape[1])
        self.bounds = bounds.astype(np.int32)
        self._filled = np.flatnonzero(np.diff(bounds))  # reduceat has no empty sums
        self._dense: Array | None = None

    def times(self, x: Array) -> Array:
        """Return x @ matrix.T of x (vectors, columns)."""
        if len(x) > _FEW:
            return x @ self.dense().T
        y = np.zeros((len(x), self.shape[0]), np.float32)
        for vector, sums in zip(x, y, strict=True):
            products = vector[self.columns]
            products *= self.values
            if len(self._filled):
                sums[self._filled] = np.add.reduceat(products, self.bounds[self._filled])
        return y

    def dense(self) -> Array:
        """Return the matrix as an array, which is kept."""
        if self._dense is None:
            self._dense = np.zeros(self.shape, np.float32)
            rows = np.repeat(np.arange(self.shape[0]), np.diff(self.bounds))
            self._dense[rows, self.columns] = self.values
        return self._dense


def weights_of(node: Node) -> dict[str, str]:
    """Return the names of the tensors that a node reads, by what they are to it."""
    keys = ("weight", "bias", "scale", "shift", "tensor")
    return {key: node[key] for key in keys if node.get(key) is not None}


def _elementwise(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    return ACTIVATIONS[node["op"]].function(inputs[0], node, None)


def _activated(x: Array, node: Node) -> Array:
    """Apply the fused activation in place: the array was made here."""
    name = node.get("activation")
    return x if name is None else ACTIVATIONS[name].function(x, node, x)


# -- layers --------------------------------------------------------------------------------------------


def _linear(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    weight, x = tensors[node["weight"]], inputs[0]
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, Rows):
        y = weight.times(rows)
    elif isinstance(weight, np.ndarray):
        y = rows @ weight.T
    else:
        y = (weight @ rows.T).T  # one feature a row, as sparse products want it; the transpose is a view
    if node["bias"] is not None:
        y += tensors[node["bias"]]
    return _activated(y, node).reshape(*x.shape[:-1], y.shape[-1])


def _conv(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    """Unfold a block of the input, a few images or a few rows of one, and multiply; block by block."""
    weight, kernel, groups = tensors[node["weight"]], node["kernel"], node["groups"]
    x = _padded(inputs[0], node["padding"], node["padding"], 0)
    windows = _windows(x, kernel, node["stride"], node["dilation"])
    count, rows, others = len(x), windows.shape[2 + len(kernel)], windows.shape[3 + len(kernel) :]
    outputs, inner = weight.shape[0], (x.shape[1] // groups) * int(np.prod(kernel))
    if isinstance(weight, np.ndarray):
        weight = weight.reshape(groups, outputs // groups, inner)
    result = np.empty((count, outputs, rows, *others), np.float32)
    row = max(1, groups * inner * int(np.prod(others)))
    high = min(rows, max(1, _BLOCK // row))
    many = max(1, _BLOCK // (row * rows)) if high == rows else 1
    for image, top in product(range(0, count, many), range(0, rows, high)):
        block = np.moveaxis(windows[image : image + many], 0, 1 + len(kernel))
        block = block[(slice(None),) * (2 + len(kernel)) + (slice(top, top + high),)]
        unfolded = block.reshape(groups, inner, -1)
        y = weight @ (unfolded if isinstance(weight, np.ndarray) else unfolded[0])
        y = y.reshape(outputs, *block.shape[1 + len(kernel) :])
        result[image : image + many, :, top : top + high] = y.swapaxes(0, 1)
    if node["bias"] is not None:
        result += tensors[node["bias"]].reshape(-1, *(1 for _ in kernel))
    return _activated(result, node)


def _windows(x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """Return a view (batch, channel, *kernel, *output) of what each output position sees."""
    spatial = len(kernel)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    axes = tuple(range(2, 2 + spatial))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=axes)  # type: ignore[call-overload]
    steps = (slice(None, None, s) for s in (*stride, *dilation))
    view = view[(slice(None), slice(None), *steps)]
    return view.transpose(0, 1, *range(2 + spatial, 2 + 2 * spatial), *axes)


def _padded(x: Array, before: Sequence[int], after: Sequence[int], value: float) -> Array:
    """Pad the last dims with ``value``."""
    if not any(before) and not any(after):
        return x
    lead = x.ndim - len(before)
    sizes = zip(x.shape[lead:], before, after, strict=True)
    result = np.full((*x.shape[:lead], *(n + b + a for n, b, a in sizes)), value, x.dtype)
    inside = (slice(b, b + n) for n, b in zip(x.shape[lead:], before, strict=True))
    result[(..., *inside)] = x
    return result


# -- pooling and reductions ----------------------------------------------------------------------------


def _pooled(node: Node, x: Array, dilation: Sequence[int], fill: float, join: np.ufunc) -> Array:
    """Join the kernel's positions one after the other; the right edge is padded as far as needed."""
    kernel, stride, padding = node["kernel"], node["stride"], node["padding"]
    lead, sizes = x.ndim - len(kernel), node["shape"][-len(kernel) :]
    last = [(o - 1) * s + 1 for o, s in zip(sizes, stride, strict=True)]
    reach = (e + d * (k - 1) for e, d, k in zip(last, dilation, kernel, strict=True))
    after = [max(0, r - n - p) for r, n, p in zip(reach, x.shape[lead:], padding, strict=True)]
    x = _padded(x, padding, after, fill)
    result: Array | None = None
    for offsets in product(*(range(0, d * k, d) for k, d in zip(kernel, dilation, strict=True))):
        part = x[(..., *(slice(o, o + e, s) for o, e, s in zip(offsets, last, stride, strict=True)))]
        result = part.copy() if result is None else join(result, part, out=result)
    assert result is not None
    return result


def _max_pool(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    return _pooled(node, inputs[0], node["dilation"], -np.inf, np.maximum)


def _avg_pool(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    x, kernel = inputs[0], node["kernel"]
    total = _pooled(node, x, [1] * len(kernel), 0, np.add)
    if node["divisor"] is not None:
        total /= node["divisor"]
        return total
    sizes, outputs = x.shape[-len(kernel) :], total.shape[-len(kernel) :]
    spatial = zip(sizes, outputs, kernel, node["stride"], node["padding"], strict=True)
    for axis, (size, out, reach, step, pad) in enumerate(spatial, start=x.ndim - len(kernel)):
        start = np.arange(out) * step - pad
        low, high = (-pad, size + pad) if node["count_padding"] else (0, size)
        counts = np.minimum(start + reach, high) - np.maximum(start, low)
        total /= counts.astype(np.float32).reshape(-1, *(1 for _ in range(axis + 1, x.ndim)))
    return total


def _reduced(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    function = {"mean": np.mean, "sum": np.sum, "amax": np.max}[node["op"]]
    return function(inputs[0], axis=tuple(node["dims"]), keepdims=node["keepdim"])


# -- norms ---------------------------------------------------------------------------------------------


def _scale(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    column = (-1, *(1 for _ in inputs[0].shape[2:]))
    result = inputs[0] * tensors[node["scale"]].reshape(column)
    result += tensors[node["shift"]].reshape(column)
    return result


def _standardised(x: Array, axis: tuple[int, ...], eps: float) -> Array:
    x = x - x.mean(axis=axis, keepdims=True)
    x /= np.sqrt(np.square(x).mean(axis=axis, keepdims=True) + eps)
    return x


def _affine(x: Array, node: Node, tensors: Tensors, shape: Sequence[int]) -> Array:
    """Multiply by the weight and add the bias, each in this shape, where there are any."""
    if node["weight"] is not None:
        x *= tensors[node["weight"]].reshape(shape)
    if node["bias"] is not None:
        x += tensors[node["bias"]].reshape(shape)
    return x


def _layer_norm(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    x = _standardised(inputs[0], tuple(range(-node["dims"], 0)), node["eps"])
    return _affine(x, node, tensors, x.shape[-node["dims"] :])


def _group_norm(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    x = inputs[0]
    split = x.reshape(len(x), node["groups"], -1 if len(x) else 1)
    y = _standardised(split, (2,), node["eps"]).reshape(x.shape)
    return _affine(y, node, tensors, (-1, *(1 for _ in x.shape[2:])))


def _softmax(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    x = inputs[0] - inputs[0].max(axis=node["dim"], keepdims=True)
    powers = np.exp(x)
    total = powers.sum(axis=node["dim"], keepdims=True)
    if node["op"] == "log_softmax":
        x -= np.log(total)
        return x
    powers /= total
    return powers


# -- arithmetic and moving data ------------------------------------------------------------------------


_OF_TWO: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "gt": np.greater,
    "le": np.less_equal,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}
_OF_ONE: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "not": np.logical_not,
}


def _arithmetic(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    function = _OF_TWO[node["op"]]
    left = inputs[0]
    if len(inputs) == 2:
        return function(left, inputs[1])
    right = node["scalar"] if "scalar" in node else tensors[node["tensor"]]
    return function(right, left) if node["reversed"] else function(left, right)


def _power(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    x, exponent = inputs[0], float(node["exponent"])
    if exponent == 2:
        return x * x
    if abs(exponent) != 0.5:
        return np.power(x, np.float32(exponent))
    root = np.sqrt(x)
    return root if exponent > 0 else np.reciprocal(root)


def _slice(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    taken = slice(node["start"], node["stop"], node["step"])
    return inputs[0][(*(slice(None) for _ in range(node["dim"])), taken)]


def _pad(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    return _padded(inputs[0], node["before"], node["after"], node["value"])


def _rows(node: Node, x: Array) -> int:
    """Return how many rows the result has: those of the input, or another multiple of the batch."""
    made, read = node.get("rows", (1, 1))
    return len(x) // read * made


def _constant(node: Node, inputs: Inputs, tensors: Tensors) -> Array:
    """Return the rows that every example has."""
    number = len(inputs[0]) // node["rows"][1]
    rows = np.asarray(tensors[node["tensor"]])
    return np.broadcast_to(rows, (number, *rows.shape)).reshape(-1 if number else 0, *node["shape"])


OPERATORS: dict[str, Callable[[Node, Inputs, Tensors], Any]] = {
    "linear": _linear,
    "conv": _conv,
    "embedding": lambda node, inputs, tensors: tensors[node["weight"]][inputs[0]],
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    **dict.fromkeys(("mean", "sum", "amax"), _reduced),
    "scale": _scale,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(_OF_TWO, _arithmetic),
    **dict.fromkeys(_OF_ONE, lambda node, inputs, tensors: _OF_ONE[node["op"]](inputs[0])),
    "where": lambda node, inputs, tensors: np.where(*inputs),
    "cast": lambda node, inputs, tensors: inputs[0].astype(node["dtype"]),
    "cumsum": lambda node, inputs, tensors: np.cumsum(inputs[0], axis=node["dim"]),
    "argmax": lambda node, inputs, tensors: np.argmax(inputs[0], axis=node["dim"]),
    "take": take,
    "mix": mix,
    "conv_transpose": conv_transpose,
    **dict.fromkeys(STEPS, run_recurrent),
    "matmul": lambda node, inputs, tensors: inputs[0] @ inputs[1],
    "cat": lambda node, inputs, tensors: np.concatenate(inputs, axis=node["dim"]),
    "reshape": lambda node, inputs, tensors: inputs[0].reshape(_rows(node, inputs[0]), *node["shape"]),
    "constant": _constant,
    "expand": lambda node, inputs, tensors: np.broadcast_to(inputs[0], (len(inputs[0]), *node["shape"])),
    "power": _power,
    "permute": lambda node, inputs, tensors: inputs[0].transpose(node["dims"]),
    "slice": _slice,
    "pad": _pad,
    **dict.fromkeys(ACTIVATIONS, _elementwise),
}
