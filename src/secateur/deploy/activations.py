"""Elementwise functions in numpy alone: the activations of a program, and the error function.

Each takes (x, node, out): float32 numbers, the node whose settings it reads, and where to put the result
(None: a new array; it may be x itself).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def _relu(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    return np.maximum(x, 0, out=out)


def _clamp(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    if node["low"] is not None:
        x = out = np.maximum(x, node["low"], out=out)
    return x if node["high"] is None else np.minimum(x, node["high"], out=out)


def _leaky_relu(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    negative = np.minimum(x, 0) * node["slope"]
    return np.add(np.maximum(x, 0, out=out), negative, out=out)


def _elu(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    negative = np.expm1(np.minimum(x, 0)) * node["alpha"]
    return np.add(np.maximum(x, 0, out=out), negative, out=out)


def _sigmoid(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    with np.errstate(over="ignore"):  # 1 / (1 + inf) is the right 0
        return np.reciprocal(1 + np.exp(-x), out=out)


def _tanh(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    return np.tanh(x, out=out)


def _silu(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    return np.multiply(x, _sigmoid(x, node, None), out=out)


def _gelu(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    return np.multiply(x, (1 + erf(x * 0.5**0.5)) * 0.5, out=out)


def _gelu_tanh(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    near = np.clip(x, -10, 10)  # the cube of a huge number is none; beyond 10 the result is x or 0
    inner = (2 / np.pi) ** 0.5 * (near + 0.044715 * near * near * near)
    return np.multiply(x, (1 + np.tanh(inner)) * 0.5, out=out)


def _hardsigmoid(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    return np.clip(x * (1 / 6) + 0.5, 0, 1, out=out)


def _hardswish(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    return np.multiply(x, _hardsigmoid(x, node, None), out=out)


def _softplus(x: np.ndarray, node: Mapping[str, Any], out: np.ndarray | None) -> np.ndarray:
    scaled = x * node["beta"]
    soft = np.log1p(np.exp(np.minimum(scaled, node["threshold"]))) / node["beta"]
    result = np.where(scaled > node["threshold"], x, soft)
    if out is None:
        return result
    out[...] = result
    return out


# erf(x) = x P(x²) / Q(x²) on [-4, 4], a least-squares fit refined to an equal ripple: off by 1.6e-9 at most.
_ERF_P = (
    1.128379182108944,
    0.18471036780157593,
    0.054332606574598256,
    0.003839530715607853,
    0.0003826925815449123,
    4.780548582809547e-06,
    -1.3666831560896722e-08,
)
_ERF_Q = (
    1.0,
    0.49702884687385246,
    0.11382632291392854,
    0.01545352054330835,
    0.001309579811777383,
    6.400935542519065e-05,
)


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function of float32 numbers, to 1e-7. Numpy has none."""
    result = np.empty(x.shape, np.float32)
    flat, source = result.reshape(-1), x.reshape(-1)
    for start in range(0, flat.size, 1 << 14):  # in float64, but never a whole array of it
        part = np.clip(source[start : start + (1 << 14)].astype(np.float64), -4, 4)
        square = part * part
        above, below = np.full_like(part, _ERF_P[-1]), np.full_like(part, _ERF_Q[-1])
        for value, factors in ((above, _ERF_P), (below, _ERF_Q)):
            for factor in factors[-2::-1]:
                value *= square
                value += factor
        flat[start : start + (1 << 14)] = part * above / below
    return result


ACTIVATIONS: dict[str, Callable[[np.ndarray, Mapping[str, Any], np.ndarray | None], np.ndarray]] = {
    "relu": _relu,
    "clamp": _clamp,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "softplus": _softplus,
}
