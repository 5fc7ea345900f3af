"""A program of which the compiled kernels run what they can, piece by piece, and numpy the rest.

A piece is a row of nodes that ``planning.py`` lays out, with a layer of few weights among them. Between them
numpy multiplies dense matrices, and ``array_kernels.py`` does layer norms and activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import array_kernels
from .activations import ACTIVATIONS
from .instructions import INSTRUCTIONS
from .operators import OPERATORS
from .planning import Compiled, plan
from .workspace import UnsupportedError

Array = np.ndarray
Node = Mapping[str, Any]
Tensors = Mapping[str, Any]
Operator = Callable[[Node, Sequence[Array], Tensors], Array]

_DENSE = 0.3  # of a matrix's entries: from here on BLAS multiplies it faster than kernels that skip zeros
_TRUTHS = ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not")


class Mixed:
    """A program: called with the inputs of a batch it returns the outputs."""

    def __init__(self, graph: Mapping[str, Any], tensors: Tensors) -> None:
        self.graph, self.tensors = graph, tensors
        later = set(graph["outputs"])
        self.steps: list[tuple[Callable[[dict[str, Array]], None], list[str]]] = []
        for nodes, compiled in reversed(list(_pieces(graph, tensors))):
            reads = {name for node in nodes for name in node["inputs"]}
            made = {node["output"] for node in nodes}
            done = [name for name in reads | made if name not in later]
            step = _compiled(graph, nodes, tensors, sorted(made & later)) if compiled else None
            self.steps.append((step or self._interpreted(nodes), done))
            later |= reads - made
        self.steps.reverse()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        values = {spec["name"]: x for spec, x in zip(self.graph["inputs"], inputs, strict=True)}
        for step, done in self.steps:
            step(values)
            for name in done:
                values.pop(name, None)
        return [values[name] for name in self.graph["outputs"]]

    def _interpreted(self, nodes: Sequence[Node]) -> Callable[[dict[str, Array]], None]:
        chosen = [(node, self._operator(node)) for node in nodes]

        def run(values: dict[str, Array]) -> None:
            for node, operator in chosen:
                given = [values[name] for name in node["inputs"]]
                values[node["output"]] = operator(node, given, self.tensors)

        return run

    def _operator(self, node: Node) -> Operator:
        if node["op"] == "linear" and _share(self.tensors[node["weight"]]) < _DENSE:
            return _sparse_product(node, self.tensors)
        return ARRAYS.get(node["op"], OPERATORS[node["op"]])


def _pieces(graph: Mapping[str, Any], tensors: Tensors) -> Iterator[tuple[list[Node], bool]]:
    """Yield nodes in order: those of a piece for the kernels, True; or one for numpy, False."""
    shapes = {spec["name"]: list(spec["shape"][1:]) for spec in graph["inputs"]}
    kinds = {spec["name"]: spec["dtype"] for spec in graph["inputs"]}
    rows = dict.fromkeys(shapes, (1, 1))
    piece: list[Node] = []
    for node in graph["nodes"]:
        shapes[node["output"]], kinds[node["output"]] = node["shape"], _kind(node, kinds, tensors)
        made, read = node.get("rows", (1, 1))
        number = rows[node["inputs"][0]]
        scale = math.gcd(number[0] * made, number[1] * read)
        rows[node["output"]] = number[0] * made // scale, number[1] * read // scale
        names = [*node["inputs"], node["output"]]
        floats = all(kinds[name] == "float32" for name in names)
        if floats and _fits(node, shapes, tensors):
            if piece and rows[piece[-1]["output"]] != rows[node["output"]]:
                yield from _piece(piece, tensors)
                piece = []
            piece.append(node)
            continue
        yield from _piece(piece, tensors)
        piece = []
        yield [node], False
    yield from _piece(piece, tensors)


def _piece(nodes: list[Node], tensors: Tensors) -> Iterator[tuple[list[Node], bool]]:
    if any(_gains(node, tensors) for node in nodes):
        yield nodes, True
    else:
        yield from (([node], False) for node in nodes)


def _gains(node: Node, tensors: Tensors) -> bool:
    return node["op"] in ("conv", "linear") and _share(tensors[node["weight"]]) < _DENSE


def _share(weight: Array) -> float:
    return np.count_nonzero(weight) / max(weight.size, 1)


def _kind(node: Node, kinds: Mapping[str, str], tensors: Tensors) -> str:
    """Return the dtype of what a node makes."""
    if node["op"] in _TRUTHS:
        return "bool"
    if node["op"] == "argmax":
        return "int64"
    if node["op"] == "embedding":
        return "float32"
    if node["op"] == "cast":
        return node["dtype"]
    if node["op"] == "constant":
        return str(tensors[node["tensor"]].dtype)
    return kinds[node["inputs"][-1]]


def _fits(node: Node, shapes: Mapping[str, Sequence[int]], tensors: Tensors) -> bool:
    """Whether the kernels can run a node by itself."""
    if node["op"] not in INSTRUCTIONS or "rows" in node:
        return False
    try:
        plan(_alone([node], shapes, [node["output"]]), tensors, 1)
        plan(_alone([node], shapes, [node["output"]]), tensors, 2)
    except UnsupportedError:
        return False
    return True


def _alone(
    nodes: Sequence[Node], shapes: Mapping[str, Sequence[int]], outputs: Sequence[str]
) -> dict[str, Any]:
    """Return nodes as a program of their own."""
    made = {node["output"] for node in nodes}
    names = dict.fromkeys(name for node in nodes for name in node["inputs"] if name not in made)
    given = [{"name": name, "shape": [None, *shapes[name]], "dtype": "float32"} for name in names]
    return {"version": 1, "inputs": given, "outputs": list(outputs), "nodes": [dict(node) for node in nodes]}


def _compiled(
    graph: Mapping[str, Any], nodes: Sequence[Node], tensors: Tensors, outputs: Sequence[str]
) -> Callable[[dict[str, Array]], None] | None:
    """Return a step that runs a piece in the kernels; None where they lack something after all."""
    shapes = {spec["name"]: spec["shape"][1:] for spec in graph["inputs"]}
    shapes |= {node["output"]: node["shape"] for node in graph["nodes"]}
    alone = _alone(nodes, shapes, outputs)
    try:
        run = Compiled(alone, tensors)
    except UnsupportedError:
        return None
    names = [spec["name"] for spec in alone["inputs"]]

    def step(values: dict[str, Array]) -> None:
        values.update(zip(outputs, run([values[name] for name in names]), strict=True))

    return step


def _sparse_product(node: Node, tensors: Tensors) -> Operator:
    """A product with few weights left, over any dims before the features, as one over a longer batch."""
    weight = tensors[node["weight"]]
    flat = {**node, "inputs": ["x"], "output": "y", "shape": [len(weight)]}
    given = [{"name": "x", "shape": [None, weight.shape[1]], "dtype": "float32"}]
    run = Compiled({"version": 1, "inputs": given, "outputs": ["y"], "nodes": [flat]}, tensors)

    def operator(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
        x = inputs[0]
        (y,) = run([x.reshape(-1, x.shape[-1])])
        return y.reshape(*x.shape[:-1], -1)

    return operator


# -- operators on arrays ----------------------------------------------------------------------------------

_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
_INF = np.float32(np.inf)


def _settings(node: Node, name: str) -> tuple[int, np.float32, np.float32]:
    numbers = [np.float32(node[key]) for key in ACTIVATIONS[name].settings]
    return _CODES[name], *(numbers + [np.float32(0)] * 2)[:2]  # type: ignore[return-value]


def _linear(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
    x, weight, name = inputs[0], tensors[node["weight"]], node.get("activation")
    y = x.reshape(-1, x.shape[-1]) @ weight.T
    row = None if name is None else ACTIVATIONS[name]
    if row is not None and row.bounds is None and name not in _FASTER:
        return OPERATORS["linear"](node, inputs, tensors)
    low, high = (-_INF, _INF) if row is None or row.bounds is None else row.bounds(node)
    code = (-1, np.float32(0), np.float32(0))
    if name is not None and row is not None and row.bounds is None:
        code = _settings(node, name)
    bias = np.zeros(len(weight), np.float32) if node["bias"] is None else tensors[node["bias"]]
    array_kernels.finish(y, bias, *code, np.float32(low), np.float32(high))
    return y.reshape(*x.shape[:-1], len(weight))


def _activation(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
    x = np.ascontiguousarray(inputs[0])
    y = np.empty_like(x)
    array_kernels.activate(x.reshape(-1), y.reshape(-1), *_settings(node, node["op"]))
    return y


def _layer_norm(node: Node, inputs: Sequence[Array], tensors: Tensors) -> Array:
    x = np.ascontiguousarray(inputs[0])
    size, y = math.prod(x.shape[-node["dims"] :]), np.empty_like(x)
    weight = np.ones(size, np.float32) if node["weight"] is None else tensors[node["weight"]].reshape(-1)
    bias = np.zeros(size, np.float32) if node["bias"] is None else tensors[node["bias"]].reshape(-1)
    flat = (x.reshape(-1, size), y.reshape(-1, size)) if x.size else (x.reshape(0, size), y.reshape(0, size))
    array_kernels.layer_norm(*flat, weight, bias, np.float32(node["eps"]))
    return y


# Those that numpy computes in several passes or in float64. For the others it has vectors, numba has not.
_FASTER = ("gelu", "hardswish", "hardsigmoid", "leaky_relu")
ARRAYS: dict[str, Operator] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    **dict.fromkeys(_FASTER, _activation),
}
