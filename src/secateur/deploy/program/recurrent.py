"""What recurrent layers and cells of an exported graph become: one node a layer and direction."""

from __future__ import annotations

from typing import Any

import torch

from secateur.deploy.program.elementwise import times
from secateur.deploy.program.emitting import Arguments, Constant, Lowering, Refused, Rule, Value, is_constant
from secateur.deploy.program.turning import permuted, reshaped
from secateur.graph.calls import Call


def _layers(op: str) -> Rule:
    """Layers of one kind; the batch is brought in front where steps come first."""

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if "input" not in a or "batch_sizes" in a:
            raise Refused("reads packed sequences")
        if a["train"] and a["dropout"]:
            raise Refused("drops out even in eval mode")
        number = a["num_layers"] * (1 + a["bidirectional"])
        params = list(a["params"])
        each = len(params) // number
        if each not in (2, 4):
            raise Refused("projects its states (proj_size)")
        turn = [0, 1, 2] if a["batch_first"] else [1, 0, 2]
        x = permuted(made, a["input"], turn)
        given = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
        starts = [_starts(made, state, number, x) for state in given]
        cells = any(user.args[1] == 2 and user.users for user in call.node.users)
        ends: list[tuple[Value, ...]] = []
        for layer in range(a["num_layers"]):
            outputs = []
            for direction in range(1 + a["bidirectional"]):
                at = layer * (1 + a["bidirectional"]) + direction
                weights = [*params[each * at : each * (at + 1)], None, None][:4]
                states = [start[at] for start in starts]
                hidden, last = _direction(made, op, x, weights, states, direction == 1, cells)
                outputs.append(hidden)
                ends.append(last)
            x = outputs[0] if len(outputs) == 1 else _joined(made, outputs, 2)
        finals = [permuted(made, _stacked(made, list(parts)), [1, 0, 2]) for parts in zip(*ends, strict=True)]
        return [permuted(made, x, turn), *finals, None][: 1 + len(given)]

    return rule


def _starts(made: Lowering, state: Any, number: int, x: Value) -> list[Value | None]:
    """Return the state of each layer and direction before the first step; None where all are zero."""
    if not is_constant(state):
        state = permuted(made, state, [1, 0, 2])
        shape = (state.shape[0], state.shape[2])
        return [reshaped(made, _cut(made, state, 1, at, 1), shape) for at in range(number)]
    if not state.tensor.any():
        return [None] * number
    rows = [Constant(f"{state.name}.{at}", state.tensor[at][:, None]) for at in range(number)]
    return [reshaped(made, made.repeated(row, x), (x.shape[0], row.tensor.shape[2])) for row in rows]


def _direction(
    made: Lowering, op: str, x: Value, weights: list[Any], states: list[Any], reverse: bool, cells: bool
) -> tuple[Value, tuple[Value, ...]]:
    """One layer in one direction: its hidden states, and the states after its last step."""
    own, other, bias, other_bias = weights
    batch, steps, _ = x.shape
    size, gates = other.tensor.shape[1], len(own.tensor)
    taken = made.emit("linear", [x], (batch, steps, gates), weight=made.tensor(own), bias=made.tensor(bias))
    if all(state is None for state in states):
        states = []
    else:
        zeros = next(state for state in states if state is not None)
        states = [times(made, zeros, 0.0) if state is None else state for state in states]
    number = 2 if cells else 1
    settings: Arguments = {"weight": made.tensor(other), "bias": made.tensor(other_bias), "reverse": reverse}
    ran = made.emit(op, [taken, *states], (batch, steps, number * size), **settings, cells=cells)
    parts = [_cut(made, ran, 2, at * size, size) if cells else ran for at in range(number)]
    last = [_cut(made, part, 1, 0 if reverse else steps - 1, 1) for part in parts]
    return parts[0], tuple(reshaped(made, part, (batch, size)) for part in last)


def _cut(made: Lowering, x: Value, dim: int, start: int, size: int) -> Value:
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return made.emit("slice", [x], shape, dim=dim, start=start, stop=start + size, step=1)


def _joined(made: Lowering, parts: list[Value], dim: int) -> Value:
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return made.emit("cat", parts, shape, dim=dim)


def _stacked(made: Lowering, parts: list[Value]) -> Value:
    batch, size = parts[0].shape
    parts = [reshaped(made, part, (batch, 1, size)) for part in parts]
    return parts[0] if len(parts) == 1 else _joined(made, parts, 1)


def _cell(op: str) -> Rule:
    """A cell is a layer of one step."""

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        given = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
        x = a["input"]
        if is_constant(x):
            raise Refused("works on a constant where it should on an input")
        states = [
            (None if not state.tensor.any() else made.repeated(state, x)) if is_constant(state) else state
            for state in given
        ]
        x = reshaped(made, x, (x.shape[0], 1, x.shape[1]))
        weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        _, last = _direction(made, op, x, weights, states, False, op == "lstm")
        return list(last) if op == "lstm" else last[0]

    return rule


_ATEN = torch.ops.aten
RECURRENT: dict[Any, Rule] = {
    **{op: _layers(op.__name__) for op in (_ATEN.lstm, _ATEN.gru, _ATEN.rnn_tanh, _ATEN.rnn_relu)},
    _ATEN.lstm_cell: _cell("lstm"),
    _ATEN.gru_cell: _cell("gru"),
    _ATEN.rnn_tanh_cell: _cell("rnn_tanh"),
    _ATEN.rnn_relu_cell: _cell("rnn_relu"),
}
