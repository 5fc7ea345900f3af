"""One copy of a captured graph with the sizes of what is left: a patch for each operator that has sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.errors import ModelError
from secateur.graph.calls import Call
from secateur.graph.capture import Captured
from secateur.graph.operators import plain
from secateur.structure.labels import Array, Classes
from secateur.structure.propagate import Labelled, Walk, values_in
from secateur.structure.surgery import groups_left

aten = torch.ops.aten
BOUND = "it was made for such inputs alone (compact's other form, 'modules', serves for others)"
CONSTANTS = "constants."  # what the names of tensors begin with that a forward has written into it
Arguments = dict[str, Any]
Patch = Callable[["Patching", Call, Arguments], Any]


class Patching:
    """One copy of a graph, node by node, with the sizes of what is left. ``constants``: the tensors that are
    written into it, by name; ``once``: the nodes that become a tensor, by its name."""

    def __init__(self, walk: Walk, classes: Classes, pruned: Array, once: Mapping[fx.Node, str]) -> None:
        self.walk, self.classes, self.pruned, self.once = walk, classes, pruned, once
        self.constants: dict[str, Tensor] = {}
        self.new = fx.Graph()
        self.of: dict[fx.Node, Any] = {}

    def copied(self, graph: fx.Graph, captured: Captured) -> fx.Graph:
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in captured.inputs:
                self.of[node] = self.new.placeholder(node.name)
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in captured.tensors:
                self.of[node] = self.new.get_attr(captured.tensors[node.name])
            elif node.op == "placeholder" and node.name in captured.constants:
                self.of[node] = self.constant(node.name, captured.constants[node.name])
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in captured.inputs:
                self._bind(node.name, self.of[node], node.meta.get("val"))
        returned = self._nodes(graph)
        self.new.output(fx.map_arg(list(returned), self.of.__getitem__))
        return self.new

    def _bind(self, name: str, node: fx.Node, example: Any) -> None:
        """Check that an argument is as the example is: what is computed from it may stand in the graph."""
        if isinstance(example, Tensor):
            dims = [(dim, size) for dim, size in enumerate(example.shape) if isinstance(size, int)]
            for dim, size in dims:
                found = self.new.call_function(aten.sym_size.int, (node, dim))
                self._check(operator.eq, found, size, f"{name} has {size} in dim {dim}")
        elif example is None:
            self._check(operator.is_, node, None, f"{name} is None")
        elif isinstance(example, (bool, int, float, str)):
            self._check(operator.eq, node, example, f"{name} is {example!r}")

    def _check(self, compare: Any, found: fx.Node, wanted: Any, said: str) -> None:
        fits = self.new.call_function(compare, (found, wanted))
        self.new.call_function(aten._assert_scalar.default, (fits, f"{said} in this graph; {BOUND}"))

    def _nodes(self, graph: fx.Graph) -> Any:
        for node in graph.nodes:
            call = Call(node)
            if node.op == "output":
                return node.args[0]
            if node in self.once:
                self.of[node] = self.new.get_attr(self.once[node])
            elif node.op == "call_function" and not call.checks:
                self.of[node] = self._inside(node) if call.schema is None else self._call(call)
        return ()

    def _inside(self, node: fx.Node) -> Any:
        """A graph inside the graph is written out in its place; all else that is no operator stays."""
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.new.node_copy(node, self.of.__getitem__)
        inner = next(n for n in node.all_input_nodes if n.op == "get_attr")
        module = getattr(self.walk.captured.graph_module, str(inner.target))
        nodes = [n for n in node.args if isinstance(n, fx.Node)]
        places = (n for n in module.graph.nodes if n.op == "placeholder")
        for place, given in zip(places, nodes[nodes.index(inner) + 1 :], strict=True):
            self.of[place] = self.of[given]
        return [self.of.get(part, part) for part in self._nodes(module.graph)]

    def _call(self, call: Call) -> Any:
        patch = PATCHES.get(plain(call.operator))
        changed = any(
            self.count(labels) < len(labels)
            for value in values_in([self.walk.values.get(n) for n in (*call.node.all_input_nodes, call.node)])
            for _, labels in value.labels()
        )
        if patch is None or not changed:
            return self.new.node_copy(call.node, self._one)
        arguments = dict(call.arguments)
        target = patch(self, call, arguments) or call.node.target
        return target if isinstance(target, fx.Node) else self.call(target, arguments)

    def call(self, target: Any, arguments: Arguments) -> fx.Node:
        """Return a call in the new graph of an operator, with arguments by name."""
        schema = target._schema.arguments
        given = {a.name: fx.map_arg(arguments[a.name], self._one) for a in schema if a.name in arguments}
        args = [given.pop(a.name) for a in schema if not a.kwarg_only]
        return self.new.call_function(target, tuple(args), given)

    def _one(self, node: fx.Node) -> Any:
        return self.of.get(node, node)  # what a patch has put in is of the new graph already

    # -- what patches ask ----------------------------------------------------------------------------------

    def kept(self, labels: Array) -> Array:
        return ~self.pruned[self.classes.of[labels]]

    def count(self, labels: Array) -> int:
        return int(self.kept(labels).sum())

    def value(self, node: Any) -> Labelled:
        return self.walk.values[node]

    def constant(self, name: str, tensor: Tensor) -> fx.Node:
        self.constants[CONSTANTS + name] = tensor.detach().clone()
        return self.new.get_attr(CONSTANTS + name)

    def index(self, call: Call, source: Array, picked: Array) -> fx.Node:
        """Return the constant that picks what is left of the labels ``picked`` from a dim."""
        index = torch.from_numpy(self.places(source, picked)).to(call.node.meta["val"].device)
        return self.constant(f"{call.node.name}_index", index)

    def sizes(self, entries: Sequence[Any], value: Labelled, first: int = 0) -> list[Any]:
        """Return sizes of dims from ``first`` on with those that are left in the place of the old ones."""
        return [self.size(entry, value.dims[dim]) for dim, entry in enumerate(entries, first)]

    def size(self, entry: Any, labels: Array | None) -> Any:
        if labels is None or entry == -1 or self.count(labels) == len(labels):
            return entry
        if isinstance(entry, int):
            return self.count(labels)
        common = gcd(self.count(labels), len(labels))  # a size computed from the batch's
        times = self.new.call_function(operator.mul, (self._one(entry), self.count(labels) // common))
        return self.new.call_function(operator.floordiv, (times, len(labels) // common))

    def places(self, source: Array, picked: Array) -> Array:
        """Return where, among what is left of a dim, stands what is left of the labels picked from it."""
        at = {int(label): place for place, label in enumerate(source[self.kept(source)])}
        return np.array([at[int(label)] for label in picked[self.kept(picked)]], dtype=np.int64)


# -- patches: change the arguments in place, and return another operator where one is needed ----------------


def _sized(argument: str) -> Patch:
    def patch(p: Patching, call: Call, a: Arguments) -> None:
        value = p.value(call.node)
        if len(a[argument]) == len(value.shape):
            a[argument] = p.sizes(a[argument], value)

    return patch


def _view(p: Patching, call: Call, a: Arguments) -> Any:
    value = p.value(call.node)
    a["shape"] = p.sizes(a["size"], value)
    return aten.reshape.default  # a smaller tensor need not lie in memory as the old one did


def _unflatten(p: Patching, call: Call, a: Arguments) -> None:
    dim = a["dim"] % len(p.value(call.node.args[0]).shape)
    a["sizes"] = p.sizes(a["sizes"], p.value(call.node), dim)


def _split(p: Patching, call: Call, a: Arguments) -> Any:
    source, dim = p.value(a["self"]), a.get("dim") or 0
    labels = source.dims[dim]
    if labels is None or p.count(labels) == len(labels):
        return None
    parts = [value.dims[dim] for value in values_in(p.walk.values[call.node])]
    a["split_sizes"] = [p.count(labels) for labels in parts if labels is not None]
    return aten.split_with_sizes.default


def _slice(p: Patching, call: Call, a: Arguments) -> Any:
    source, dim = p.value(a["self"]), a.get("dim") or 0
    labels, picked = source.dims[dim], p.value(call.node).dims[dim]
    if labels is None or picked is None or p.count(labels) == len(labels):
        return None
    places = p.places(labels, picked)
    if (np.diff(places) == 1).all():
        start = int(places[0]) if len(places) else 0
        a |= {"start": start, "end": start + len(places), "step": 1, "length": len(places)}
        return None
    a |= {"dim": dim, "index": p.index(call, labels, picked)}
    return aten.index_select.default


def _index_select(p: Patching, call: Call, a: Arguments) -> None:
    dim = a["dim"] % len(p.value(call.node).shape)
    labels, picked = p.value(a["self"]).dims[dim], p.value(call.node).dims[dim]
    if labels is not None and picked is not None and p.count(labels) < len(labels):
        a["index"] = p.index(call, labels, picked)


def _shuffled(p: Patching, call: Call, a: Arguments) -> Any:
    labels, picked = p.value(a["self"]).dims[1], p.value(call.node).dims[1]
    if labels is None or picked is None:
        return None
    a |= {"dim": 1, "index": p.index(call, labels, picked)}
    return aten.index_select.default


def _repeated(p: Patching, call: Call, a: Arguments) -> None:
    if a.get("output_size") is not None and a.get("dim") is not None:
        value = p.value(call.node)
        a["output_size"] = p.size(a["output_size"], value.dims[a["dim"] % len(value.shape)])


def _slice_scatter(p: Patching, call: Call, a: Arguments) -> None:
    target, source = p.value(a["self"]), p.value(a["src"])
    axis = a["dim"] % len(target.shape)
    labels, written = target.dims[axis], source.dims[axis]
    if labels is None or p.count(labels) == len(labels):
        return
    part = labels[slice(a["start"], a["end"], a["step"])]
    places = p.places(labels, part)
    if written is None or not (np.diff(places) == 1).all():
        _refused(p, call, a)
    a |= {"start": int(places[0]) if len(places) else 0, "step": 1}
    a["end"] = a["start"] + len(places)


def _conv(p: Patching, call: Call, a: Arguments) -> None:
    weight = p.value(a["weight"])
    rows = weight.dims[0]
    if a["groups"] > 1 and rows is not None:
        a["groups"] = groups_left(np.flatnonzero(~p.kept(rows)), weight.shape[0], a["groups"])


def _group_norm(p: Patching, call: Call, a: Arguments) -> None:
    labels = p.value(a["input"]).dims[1]
    if labels is not None:
        a["num_groups"] = p.count(labels) * a["num_groups"] // len(labels)


def _attention(p: Patching, call: Call, a: Arguments) -> None:
    if a.get("scale") is None:
        a["scale"] = p.value(a["query"]).shape[-1] ** -0.5  # that of the heads as they were


def _mean(p: Patching, call: Call, a: Arguments) -> Any:
    """What has gone was zero, and counts as it did."""
    value, dims = p.value(a["self"]), a.get("dim")
    over = range(len(value.shape)) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    share = 1.0
    for labels in (value.dims[dim] for dim in over):
        if labels is not None:
            share *= p.count(labels) / len(labels)
    mean = p.call(call.node.target, a)
    return mean if share == 1.0 else p.new.call_function(aten.mul.Tensor, (mean, share))


def _refused(p: Patching, call: Call, a: Arguments) -> None:
    raise ModelError(f"form='graph' cannot make {call.name} smaller ({call.node.name})")


PATCHES: dict[Any, Patch] = {
    **dict.fromkeys((aten.view, aten._unsafe_view), _view),
    aten.expand: _sized("size"),
    aten.reshape: _sized("shape"),
    **dict.fromkeys((aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn), _sized("size")),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), _sized("size")),
    aten.unflatten: _unflatten,
    **dict.fromkeys((aten.split, aten.split_with_sizes, aten.chunk), _split),
    **dict.fromkeys((aten.unsafe_split, aten.unsafe_chunk, aten.tensor_split), _split),
    **dict.fromkeys((aten.slice, aten.narrow), _slice),
    aten.index_select: _index_select,
    **dict.fromkeys((aten.channel_shuffle, aten.native_channel_shuffle), _shuffled),
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution), _conv),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _conv),
    aten.group_norm: _group_norm,
    aten.mean: _mean,
    aten.scaled_dot_product_attention: _attention,
    aten.repeat_interleave: _repeated,
    aten.slice_scatter: _slice_scatter,
    aten.as_strided: _refused,
}
