"""What makes a value of another size along a dim: entries taken and mixed, and transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from .activations import ACTIVATIONS

Array = np.ndarray
Node = Mapping[str, Any]
Tensors = Mapping[str, Any]


def take(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
    """Return the entries at ``indices`` of a dim."""
    return inputs[0].take(node["indices"], axis=node["dim"])


def mix(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
    """Return low + share (high - low) of the entries at ``low`` and ``high`` of a dim."""
    x, dim = inputs[0], node["dim"]
    share = np.asarray(node["share"], np.float32).reshape(-1, *(1 for _ in x.shape[dim + 1 :]))
    result = x.take(node["low"], axis=dim)
    above = x.take(node["high"], axis=dim)
    above -= result
    above *= share
    result += above
    return result


def conv_transpose(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
    """Multiply every position by the whole kernel, and add each product up where it falls."""
    x, weight, groups, kernel = inputs[0], tensors[node["weight"]], node["groups"], node["kernel"]
    batch, sizes = len(x), x.shape[2:]
    outputs = weight.shape[1]
    matrix = weight.reshape(groups, x.shape[1] // groups, -1).swapaxes(1, 2)
    parts = matrix @ x.reshape(batch, groups, x.shape[1] // groups, int(np.prod(sizes)))
    parts = parts.reshape(batch, groups, outputs, *kernel, *sizes)
    steps = list(zip(node["stride"], node["dilation"], node["padding"], strict=True))
    whole = [
        max((n - 1) * s + d * (k - 1) + 1, p + out)
        for n, k, (s, d, p), out in zip(sizes, kernel, steps, node["shape"][1:], strict=True)
    ]
    result = np.zeros((batch, groups, outputs, *whole), np.float32)
    for place in product(*map(range, kernel)):
        at = (
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, n, (s, d, _) in zip(place, sizes, steps, strict=True)
        )
        result[(..., *at)] += parts[(slice(None), slice(None), slice(None), *place)]
    inside = (slice(p, p + out) for (_, _, p), out in zip(steps, node["shape"][1:], strict=True))
    result = result[(..., *inside)].reshape(batch, groups * outputs, *node["shape"][1:])
    if node["bias"] is not None:
        result = result + tensors[node["bias"]].reshape(-1, *(1 for _ in kernel))
    name = node.get("activation")
    return result if name is None else ACTIVATIONS[name].function(result, node, result)
