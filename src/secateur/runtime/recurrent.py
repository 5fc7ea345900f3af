"""Recurrent layers of a program: one direction of one layer, over the steps of every example.

What a step takes from its input is the result of a ``linear`` before it, for all steps at once; here is
what it takes from the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .activations import ACTIVATIONS

Array = np.ndarray
Step = Callable[[Array, Array, tuple[Array, ...]], tuple[Array, ...]]


def run_recurrent(node: Mapping[str, Any], inputs: Sequence[Array], tensors: Mapping[str, Any]) -> Array:
    """Return the states after every step, (batch, steps, size), the cells behind the hidden ones where the
    node asks for them; the inputs are (batch, steps, gates x size) and, where not zero, the states before the
    first step, (batch, size) each."""
    taken, weight = inputs[0], tensors[node["weight"]]
    bias = None if node["bias"] is None else tensors[node["bias"]]
    batch, steps, size = len(taken), taken.shape[1], weight.shape[1]
    number = 2 if node["op"] == "lstm" else 1
    states = tuple(inputs[1:]) or (np.zeros((batch, size), np.float32),) * number
    kept = number if node["cells"] else 1
    result = np.empty((batch, steps, kept * size), np.float32)
    turned = np.ascontiguousarray(weight.T)
    step = STEPS[node["op"]]
    for at in reversed(range(steps)) if node["reverse"] else range(steps):
        own = states[0] @ turned
        if bias is not None:
            own += bias
        states = step(taken[:, at], own, states)
        for place, state in enumerate(states[:kept]):
            result[:, at, place * size : (place + 1) * size] = state
    return result


def _sigmoid(x: Array) -> Array:
    return ACTIVATIONS["sigmoid"].function(x, {}, None)


def _lstm(taken: Array, own: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
    own += taken
    take, forget, fresh, give = np.split(own, 4, axis=1)
    cell = _sigmoid(forget) * states[1] + _sigmoid(take) * np.tanh(fresh)
    return _sigmoid(give) * np.tanh(cell), cell


def _gru(taken: Array, own: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
    size = states[0].shape[1]
    reset, keep = np.split(_sigmoid(taken[:, : 2 * size] + own[:, : 2 * size]), 2, axis=1)
    fresh = np.tanh(taken[:, 2 * size :] + reset * own[:, 2 * size :])
    return (fresh + keep * (states[0] - fresh),)


def _rnn_tanh(taken: Array, own: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
    return (np.tanh(taken + own),)


def _rnn_relu(taken: Array, own: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
    return (np.maximum(taken + own, 0),)


STEPS: dict[str, Step] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
