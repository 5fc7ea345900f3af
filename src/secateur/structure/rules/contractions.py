"""Rules of the operators that sum over channels: linear, matmul, convolutions, attention, recurrence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from secateur.graph.calls import Call
from secateur.graph.operators import operator_of, plain
from secateur.structure.labels import Array
from secateur.structure.propagate import Labelled, Walk, plain_of, result_of, values_in

aten = torch.ops.aten
Arguments = dict[str, Any]


def linear(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """A product over the last dim of the first operand with a matrix (or a vector), as its row says; users'
    own too."""
    row, given = operator_of(call), call.arguments
    source: Any = next(node for name, node in given.items() if name != row.weight and node in walk.values)
    weight, bias = given[str(row.weight)], given.get(row.bias or "")
    x, w, b = walk.values[source], a[str(row.weight)], a.get(row.bias or "")
    out, last = result_of(call.node), len(x.shape) - 1
    reads, makes = (0, 1) if row.transposed else (len(w.shape) - 1, 0)
    walk.contract(x, last, w, reads)
    walk.note(call.node, source, last, weight, reads, bias)
    walk.count(weight, math.prod(out.shape) * x.shape[-1])
    for dim in range(last):
        out.dims[dim], out.zero[dim] = x.dims[dim], x.zero[dim] and b is None
    if len(w.shape) == 2:
        _made(walk, out, w, makes, b)
    return out


def _made(walk: Walk, out: Labelled, w: Labelled, makes: int, b: Any) -> None:
    """Give the last dim of a result what the outputs of a matrix and its bias have."""
    out.dims[-1] = walk.join([(w, makes), (b, 0)]) if isinstance(b, Labelled) else w.dims[makes]
    out.zero[-1] = w.zero[makes] and (b is None or b.zero[0])


def _matmul(walk: Walk, call: Call, a: Arguments) -> Labelled:
    other = next(k for k in ("other", "mat2", "vec", "tensor") if a.get(k) is not None)
    return _product(walk, call, a, "self", other)


def _turned(walk: Walk, node: Any, dim: int) -> set[tuple[str, int]]:
    """Return which dim of a parameter is the ``dim`` of a value that is its transpose, as in ``x @ w.T``."""
    call = Call(node) if isinstance(node, fx.Node) and node.op == "call_function" else None
    if (
        call is None
        or plain(call.operator) not in (aten.t, aten.numpy_T, aten.mT)
        or len(call.shape or ()) != 2
    ):
        return set()
    name = walk.named.get(next(iter(call.tensors)))
    return set() if name is None else {(name, 1 - dim)}


def _product(walk: Walk, call: Call, a: Arguments, left: str, right: str) -> Labelled:
    x: Labelled = a[left]
    y: Labelled = a[right]
    out = result_of(call.node)
    dim_x = len(x.shape) - 1
    dim_y = max(0, len(y.shape) - 2)
    walk.contract(x, dim_x, y, dim_y)
    walk.contracted |= _turned(walk, call.arguments[left], dim_x) | _turned(
        walk, call.arguments[right], dim_y
    )
    at = len(out.shape)
    if len(y.shape) > 1:
        at -= 1
        out.dims[at], out.zero[at] = y.dims[-1], y.zero[len(y.shape) - 1]
    if len(x.shape) > 1:
        at -= 1
        out.dims[at], out.zero[at] = x.dims[-2], x.zero[len(x.shape) - 2]
    for back in range(1, at + 1):
        dim = at - back
        meet = [(v, len(v.shape) - 2 - back) for v in (x, y) if len(v.shape) - 2 - back >= 0]
        meet = [(v, d) for v, d in meet if v.shape[d] == out.shape[dim] and out.shape[dim] > 1]
        _meet(walk, out, dim, meet, any(v.zero[d] for v, d in meet))
    if len(y.shape) == 2:
        walk.note(call.node, call.arguments[left], dim_x, call.arguments[right], 0, None)
        walk.count(call.arguments[right], math.prod(out.shape) * y.shape[0])
    return out


def _meet(walk: Walk, out: Labelled, dim: int, meet: list[tuple[Labelled, int]], zero: bool) -> None:
    """Tie dims over which a product is taken one by one: heads, say."""
    if any(value.dims[d] is not None for value, d in meet):
        labels = walk.join(meet)
        out.dims[dim], out.zero[dim] = labels, zero
        if labels is not None:
            walk.labels.outer(labels)


def _addmm(walk: Walk, call: Call, a: Arguments) -> Labelled:
    b, first = a["self"], "mat1" if "mat1" in a else "batch1"
    out = _product(walk, call, a, first, first.replace("1", "2"))
    product, ahead = out.copy(), len(out.shape) - len(b.shape)
    for dim in range(ahead, len(out.shape)):
        if b.shape[dim - ahead] == out.shape[dim] > 1:
            out.dims[dim] = walk.join([(product, dim), (b, dim - ahead)])
            out.zero[dim] = product.zero[dim] and b.zero[dim - ahead]
        else:
            out.zero[dim] = False
    added = call.arguments["self"]
    if walk.reads and walk.reads[-1].node is call.node and isinstance(added, fx.Node):
        walk.reads.append(replace(walk.reads.pop(), bias=walk.named.get(added)))
    return out


def _grouped_mm(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """Rows in groups, each multiplied by its expert's own matrix (group, inputs, outputs)."""
    x, w, *_ = a.values()
    out = result_of(call.node)
    if (len(x.shape), len(w.shape)) != (2, 3):
        walk.freeze_all([x, w], f"{call.node.target} of other shapes")
        return out
    walk.freeze(w, [0], "experts that a router chooses from")
    walk.contract(x, 1, w, 1)
    out.dims[1], out.zero[1] = w.dims[2], w.zero[2]
    return out


def _conv(walk: Walk, call: Call, a: Arguments) -> Labelled:
    x, w, b, groups = a["input"], a["weight"], a["bias"], a["groups"]
    transposed = operator_of(call).transposed or bool(a.get("transposed"))
    out = result_of(call.node)
    channel = len(x.shape) - (len(w.shape) - 1)
    walk.freeze(x, range(channel + 1, len(x.shape)), "positions of a convolution")
    walk.freeze(w, range(2, len(w.shape)), "")
    if channel:
        out.dims[0], out.zero[0] = x.dims[0], x.zero[0] and b is None
    if groups == 1:
        reads, makes = (0, 1) if transposed else (1, 0)
        walk.contract(x, channel, w, reads)
        labels = w.dims[makes]
        padded = transposed or _pads(a.get("padding"))
        given = call.arguments
        walk.note(call.node, given["input"], channel, given["weight"], reads, given["bias"], padded)
    else:
        labels = _grouped(walk, x, channel, w, groups, transposed)
        makes = 0
    walk.count(call.arguments["weight"], _conv_macs(x, w, out, channel, transposed))
    made = Labelled((out.shape[channel],), [labels], [w.zero[0]])
    if isinstance(b, Labelled) and labels is not None:
        out.dims[channel] = walk.join([(made, 0), (b, 0)])
        out.zero[channel] = made.zero[0] and b.zero[0]
    else:
        if isinstance(b, Labelled):
            walk.freeze(b, [0], "the bias of an unprunable dim")
        out.dims[channel], out.zero[channel] = labels, made.zero[0]
    return out


def _pads(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any(p != 0 for p in (padding if isinstance(padding, (list, tuple)) else [padding]))


def _conv_macs(x: Labelled, w: Labelled, out: Labelled, channel: int, transposed: bool) -> float:
    positions = (x if transposed else out).shape[channel + 1 :]
    batch = out.shape[0] if channel else 1
    return float(batch * math.prod(positions) * math.prod(w.shape))


def _grouped(
    walk: Walk, x: Labelled, channel: int, w: Labelled, groups: int, transposed: bool
) -> Array | None:
    """Channels of a grouped convolution: whole groups, or the same position of every group.

    Returns the labels of the output channels.
    """
    per_in = x.shape[channel] // groups
    per_out = w.shape[1] if transposed else w.shape[0] // groups
    inputs = x.dims[channel]
    if inputs is None:
        walk.freeze(w, [0, 1], "a grouped convolution of an unprunable tensor")
        return None
    rows = w.dims[0]
    if transposed:
        if rows is None:
            walk.labels.freeze(inputs, "a grouped convolution")
            return None
        walk.labels.tie(inputs, rows)
    group = walk.fresh(groups)
    if per_in == 1:
        walk.labels.tie(inputs, group)
    else:
        walk.consumed.append(inputs)
        inside = walk.fresh(per_in) if transposed or w.dims[1] is None else w.dims[1]
        walk.labels.cell([inputs], [np.repeat(group, per_in), np.tile(inside, groups)])
    made = walk.fresh(groups * per_out) if transposed else rows
    if made is None:
        return None
    if per_out == 1:
        walk.labels.tie(made, group)
    else:
        inside = w.dims[1] if transposed else walk.fresh(per_out)
        assert inside is not None
        walk.labels.cell([made], [np.repeat(group, per_out), np.tile(inside, groups)])
    return made


def _sdpa(walk: Walk, call: Call, a: Arguments) -> Labelled:
    q, k, v = a["query"], a["key"], a["value"]
    mask = a.get("attn_mask")
    out = result_of(call.node)
    rank = len(q.shape)
    walk.contract(q, rank - 1, k, rank - 1)
    if a.get("scale") is None:
        walk.freeze(q, [rank - 1], "sets the scale of the attention scores")
        walk.freeze(k, [rank - 1], "sets the scale of the attention scores")
    walk.freeze(k, [rank - 2], "positions that attention sums over")
    walk.freeze(v, [rank - 2], "positions that attention sums over")
    out.dims[-1], out.zero[-1] = v.dims[-1], v.zero[-1]
    out.dims[-2] = q.dims[-2]
    for dim in range(rank - 2):
        if 1 != k.shape[dim] != q.shape[dim]:  # grouped-query attention inside the operator
            out.dims[dim] = _repeated(walk, q, k, v, dim)
            continue
        meet = [(value, dim) for value in (q, k, v) if value.shape[dim] > 1]
        if isinstance(mask, Labelled) and len(mask.shape) - rank + dim >= 0:
            own = len(mask.shape) - rank + dim
            if mask.shape[own] > 1:
                meet.append((mask, own))
        _meet(walk, out, dim, meet, v.zero[dim])
    if isinstance(mask, Labelled):
        walk.freeze(mask, range(len(mask.shape) - 2, len(mask.shape)), "positions of attention")
    return out


def _repeated(walk: Walk, q: Labelled, k: Labelled, v: Labelled, dim: int) -> Array | None:
    labels = walk.join([(k, dim), (v, dim)])
    if labels is None or q.dims[dim] is None:
        walk.freeze(q, [dim], "combined with an unprunable tensor")
        walk.freeze(k, [dim], "combined with an unprunable tensor")
        return None
    walk.labels.tie(q.dims[dim], np.repeat(labels, q.shape[dim] // k.shape[dim]))  # type: ignore[arg-type]
    walk.labels.outer(labels)
    return q.dims[dim]


def _recurrent(gates: int) -> Any:
    """Rule of LSTM (4 gates), GRU (3) and plain RNN (1): one hidden size for every layer."""

    def rule(walk: Walk, call: Call, a: Arguments) -> Any:
        results = plain_of(call.node.meta["val"])
        params: list[Labelled] = a["params"]
        directions = 2 if a["bidirectional"] else 1
        per = 4 if a["has_biases"] else 2
        if len(params) != per * directions * a["num_layers"]:
            walk.freeze_all(values_in(list(a.values())), f"{call.node.target} with projections")
            return results
        given = "data" if "data" in a else "input"  # packed sequences, or padded ones
        x, weights, size = a[given], call.arguments["params"], params[1].shape[1]
        vectors = math.prod(x.shape[:-1])  # each weight is used once a step and sequence
        hidden = walk.fresh(size)
        state = Labelled((size,), [hidden], [True])
        value, axis = x, len(x.shape) - 1
        for layer in range(a["num_layers"]):
            for direction in range(directions):
                start = per * (layer * directions + direction)
                part = params[start : start + per]
                walk.contract(value, axis, part[0], 1)
                if layer == 0:
                    walk.note(call.node, call.arguments[given], axis, weights[start], 1, None, True)
                walk.contract(state, 0, part[1], 1)
                for weight, tensor in zip(weights[start : start + 2], part, strict=False):
                    walk.count(weight, vectors * math.prod(tensor.shape))
                for tensor in (part[0], part[1], *part[2:]):
                    _tie_gates(walk, tensor, hidden, gates)
            value = Labelled((directions * size,), [np.tile(hidden, directions)], [True])
            axis = 0
        _begin(walk, a["hx"], state)
        for index, result in enumerate(results):
            result.dims[-1] = np.tile(hidden, directions) if index == 0 else hidden
            result.zero[-1] = True
        return results

    return rule


def _begin(walk: Walk, states: Any, state: Labelled) -> None:
    """Tie what a recurrence begins with to what it goes on with."""
    for given in values_in(states):
        last = len(given.shape) - 1
        walk.join([(given, last), (state, 0)])
        if not given.zero[last]:
            walk.freeze(state, [0], "the initial state is not zero")


def _tie_gates(walk: Walk, tensor: Labelled, hidden: Array, gates: int) -> None:
    rows = tensor.dims[0]
    if rows is None:
        walk.labels.freeze(hidden, "a recurrent weight that stays")
        return
    for gate in range(gates):
        walk.labels.tie(rows[gate * len(hidden) : (gate + 1) * len(hidden)], hidden)


def _cell(gates: int) -> Any:
    """Rule of one step of an LSTM, GRU or RNN."""

    def rule(walk: Walk, call: Call, a: Arguments) -> Any:
        results = plain_of(call.node.meta["val"])
        w_ih, w_hh = a["w_ih"], a["w_hh"]
        hidden = walk.fresh(w_hh.shape[1])
        state = Labelled((len(hidden),), [hidden], [True])
        walk.contract(a["input"], len(a["input"].shape) - 1, w_ih, 1)
        given, vectors = call.arguments, math.prod(a["input"].shape[:-1])
        walk.note(call.node, given["input"], len(a["input"].shape) - 1, given["w_ih"], 1, None, True)
        for name in ("w_ih", "w_hh"):
            walk.count(given[name], vectors * math.prod(a[name].shape))
        walk.contract(state, 0, w_hh, 1)
        for tensor in (w_ih, w_hh, a.get("b_ih"), a.get("b_hh")):
            if isinstance(tensor, Labelled):
                _tie_gates(walk, tensor, hidden, gates)
        _begin(walk, a["hx"], state)
        for result in values_in(results):
            result.dims[-1], result.zero[-1] = hidden, True
        return results

    return rule


def _einsum(walk: Walk, call: Call, a: Arguments) -> Labelled:
    operands: list[Labelled] = a["tensors"]
    out = result_of(call.node)
    equation = a["equation"].replace(" ", "")
    if "." in equation or "->" not in equation:
        walk.freeze_all(operands, "an einsum with an ellipsis")
        return out
    terms, target = equation.split("->")
    places: dict[str, list[tuple[Labelled, int]]] = {}
    for term, value in zip(terms.split(","), operands, strict=True):
        for dim, letter in enumerate(term):
            if value.shape[dim] > 1:
                places.setdefault(letter, []).append((value, dim))
    for letter, meet in places.items():
        if not any(v.dims[d] is not None for v, d in meet):
            continue
        labels = walk.join(meet)
        if letter not in target:
            owned = [(walk.owner[id(v)], d) for v, d in meet if id(v) in walk.owner]
            walk.contracted |= set(owned)
            walk.consumed += [v.dims[d] for v, d in meet if v.dims[d] is not None and not owned]  # type: ignore[misc]
            if not any(v.zero[d] for v, d in meet):
                for v, d in meet:
                    walk.freeze(v, [d], "summed where what goes is not zero")
        elif labels is not None:
            to = target.index(letter)
            out.dims[to], out.zero[to] = labels, any(v.zero[d] for v, d in meet)
            if len(meet) > 1:
                walk.labels.outer(labels)
    names = call.arguments["tensors"]
    for index, term in enumerate(terms.split(",")):
        summed = math.prod(operands[index].shape[d] for d, letter in enumerate(term) if letter not in target)
        walk.count(names[index], math.prod(out.shape) * summed)
    return out


def _bilinear(walk: Walk, call: Call, a: Arguments) -> Labelled:
    x, y, w, b = a["input1"], a["input2"], a["weight"], a["bias"]
    out = result_of(call.node)
    walk.contract(x, len(x.shape) - 1, w, 1)
    walk.contract(y, len(y.shape) - 1, w, 2)
    _made(walk, out, w, 0, b)
    walk.count(call.arguments["weight"], math.prod(out.shape) * w.shape[1] * w.shape[2])
    return out


RULES = {
    aten.linear: linear,
    **dict.fromkeys([aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot], _matmul),
    **dict.fromkeys([aten.addmm, aten.baddbmm], _addmm),
    **dict.fromkeys([aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, aten._convolution], _conv),
    **dict.fromkeys([aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d], _conv),
    aten.scaled_dot_product_attention: _sdpa,
    aten.lstm: _recurrent(4),
    aten.gru: _recurrent(3),
    aten.rnn_tanh: _recurrent(1),
    aten.rnn_relu: _recurrent(1),
    aten.lstm_cell: _cell(4),
    aten.gru_cell: _cell(3),
    aten.rnn_tanh_cell: _cell(1),
    aten.rnn_relu_cell: _cell(1),
    aten.einsum: _einsum,
    aten.bilinear: _bilinear,
}
# Of operators that exist once a package has been imported.
RULES_BY_NAME = {"aten::_grouped_mm": _grouped_mm, "transformers::grouped_mm_fallback": _grouped_mm}
