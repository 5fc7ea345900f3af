"""Compiled kernels on whole arrays: what ``mixed.py`` runs between the products that BLAS does best.

Each goes over its numbers once, where numpy makes an array for every step of a norm or an activation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels import activation_of, exact, fast


@fast
def finish(y: np.ndarray, bias: np.ndarray, kind: int, a: Any, b: Any, low: Any, high: Any) -> None:
    """Add a bias to every row, then apply an activation (-1: none) and bounds, in place."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            v = y[i, j] + bias[j]
            v = activation_of(kind, v, a, b) if kind >= 0 else v
            y[i, j] = low if v < low else (high if v > high else v)


@exact
def activate(x: np.ndarray, y: np.ndarray, kind: int, a: Any, b: Any) -> None:
    """Apply an activation to every number."""
    for i in range(len(x)):
        y[i] = activation_of(kind, x[i], a, b)


@fast
def layer_norm(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: Any) -> None:
    """Rows with a mean of zero and a variance of one, times the weight, plus the bias."""
    size = x.shape[1]
    for i in range(x.shape[0]):
        mean = np.float32(0)
        for j in range(size):
            mean += x[i, j]
        mean /= np.float32(size)
        square = np.float32(0)
        for j in range(size):
            square += (x[i, j] - mean) * (x[i, j] - mean)
        factor = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
        for j in range(size):
            y[i, j] = (x[i, j] - mean) * factor * weight[j] + bias[j]
