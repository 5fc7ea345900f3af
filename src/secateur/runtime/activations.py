"""The activations of a program, one row each, and the error function.

To add one is to write a row of ACTIVATIONS, and a rule in ``secateur.deploy.program`` that says which
operator of PyTorch it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Activation:
    """An elementwise function.

    ``function``: takes (x, node, out): float32 numbers, the node whose settings it reads, and where to put
    the result (None: a new array; it may be x itself). ``settings``: what a node says besides, each a
    number. ``kernel``: the same of one number for the compiled engine, (number, the first two settings, 0
    where there are fewer), in what numba compiles; None where it has none. ``bounds``: (node) to the least
    and the largest result of one that only cuts off, which a layer's kernel does itself.
    """

    function: Callable[[np.ndarray, Mapping[str, Any], np.ndarray | None], np.ndarray]
    settings: tuple[str, ...] = ()
    kernel: Callable[[Any, Any, Any], Any] | None = None
    bounds: Callable[[Mapping[str, Any]], tuple[float, float]] | None = None


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
    return np.positive(np.where(scaled > node["threshold"], x, soft), out=out)


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


# -- of one number ---------------------------------------------------------------------------------------

_ZERO, _HALF, _ONE, _SIX = np.float32(0), np.float32(0.5), np.float32(1), np.float32(6)
_ROOT_HALF, _ROOT, _CUBIC = np.float32(0.5**0.5), np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)


def _leaky_relu_of_one(v: Any, slope: Any, _: Any) -> Any:
    return v if v >= 0 else v * slope


def _elu_of_one(v: Any, alpha: Any, _: Any) -> Any:
    return v if v > 0 else alpha * np.expm1(v)


def _sigmoid_of_one(v: Any, _: Any, __: Any) -> Any:
    return _ONE / (_ONE + np.exp(-v))


def _silu_of_one(v: Any, _: Any, __: Any) -> Any:
    return v / (_ONE + np.exp(-v))


def _gelu_of_one(v: Any, _: Any, __: Any) -> Any:
    return _HALF * v * (_ONE + np.float32(math.erf(v * _ROOT_HALF)))


def _gelu_tanh_of_one(v: Any, _: Any, __: Any) -> Any:
    return _HALF * v * (_ONE + np.tanh(_ROOT * (v + _CUBIC * v * v * v)))


def _hardswish_of_one(v: Any, _: Any, __: Any) -> Any:
    return v * min(max(v / _SIX + _HALF, _ZERO), _ONE)


def _hardsigmoid_of_one(v: Any, _: Any, __: Any) -> Any:
    return min(max(v / _SIX + _HALF, _ZERO), _ONE)


def _softplus_of_one(v: Any, beta: Any, threshold: Any) -> Any:
    return v if v * beta > threshold else np.log1p(np.exp(v * beta)) / beta


def _bounds(node: Mapping[str, Any]) -> tuple[float, float]:
    low, high = node["low"], node["high"]
    return -math.inf if low is None else low, math.inf if high is None else high


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(lambda x, node, out: np.maximum(x, 0, out=out), bounds=lambda node: (0.0, math.inf)),
    "clamp": Activation(_clamp, ("low", "high"), bounds=_bounds),  # each a number or None
    "leaky_relu": Activation(_leaky_relu, ("slope",), _leaky_relu_of_one),
    "elu": Activation(_elu, ("alpha",), _elu_of_one),
    "gelu": Activation(_gelu, (), _gelu_of_one),
    "gelu_tanh": Activation(_gelu_tanh, (), _gelu_tanh_of_one),
    "silu": Activation(_silu, (), _silu_of_one),
    "sigmoid": Activation(_sigmoid, (), _sigmoid_of_one),
    "tanh": Activation(lambda x, node, out: np.tanh(x, out=out), (), lambda v, _, __: np.tanh(v)),
    "hardswish": Activation(_hardswish, (), _hardswish_of_one),
    "hardsigmoid": Activation(_hardsigmoid, (), _hardsigmoid_of_one),
    "softplus": Activation(_softplus, ("beta", "threshold"), _softplus_of_one),
}
