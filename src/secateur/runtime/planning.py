"""From a program (see ``secateur.deploy.program``) and a batch size to what the compiled kernels run.

A plan is a table of instructions (``kernels.py``) on values that lie as ``workspace.py`` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .activations import ACTIVATIONS
from .convolution import Operator, Weights, pair
from .instructions import INSTRUCTIONS
from .workspace import UnsupportedError, Workspace, rounded, sizes

_CLAMPS = tuple(name for name, row in ACTIVATIONS.items() if row.bounds is not None)
_VECTOR_SLACK = 64  # floats that a vector may read beyond the end


@dataclass(frozen=True)
class Plan:
    """What the kernels run for one batch size. ``arena``: the floats they need to work in."""

    batch: int
    arena: int
    outputs: tuple[tuple[int, ...], ...]
    table: np.ndarray
    numbers: tuple[np.ndarray, ...]  # values, addresses, pointers, constants, masks

    def run(
        self, execute: Callable[..., None], inputs: Sequence[np.ndarray], arena: np.ndarray
    ) -> list[np.ndarray]:
        """Return the outputs for a batch of inputs; ``arena`` has ``self.arena`` floats or more."""
        flat = [np.ascontiguousarray(x, np.float32).reshape(-1) for x in inputs]
        x = flat[0] if len(flat) == 1 else np.concatenate(flat)
        lengths = [math.prod(shape) for shape in self.outputs]
        y = np.empty(sum(lengths), np.float32)
        execute(self.table, *self.numbers, arena, x, y)
        found, start = [], 0
        for shape, length in zip(self.outputs, lengths, strict=True):
            found.append(y[start : start + length].reshape(shape))
            start += length
        return found


class Compiled:
    """A program, compiled: called with the inputs of a batch it returns the outputs.

    It keeps a plan for each number of images that it takes at a time, and arrays to work in. With
    ``threads`` the images of a batch are shared out. Raises ImportError where numba is not installed,
    UnsupportedError where the kernels lack something.
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Weights, threads: int = 1) -> None:
        from .kernels import run_table  # numba, which takes long to import where it is there

        self.graph, self.tensors = graph, tensors
        self.execute = run_table
        self.at_once = images_at_once(graph)
        self.plans = {1: plan(graph, tensors, 1)}
        self.arenas: list[np.ndarray] = []
        self.pool: Any = None
        if threads > 1:
            from concurrent.futures import ThreadPoolExecutor

            self.pool = ThreadPoolExecutor(threads)

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        batch = len(inputs[0])
        if batch <= 1 and len(inputs[0]):
            return self._part(inputs)
        parts = [[x[i : i + self.at_once] for x in inputs] for i in range(0, batch, self.at_once)]
        outputs = list(self.pool.map(self._part, parts) if self.pool else map(self._part, parts))
        if not outputs:
            return [np.empty((0, *shape[1:]), np.float32) for shape in self.plans[1].outputs]
        return [np.concatenate(part) for part in zip(*outputs, strict=True)]

    def _part(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run as many images as are taken at a time, or the rest of a batch, filled up with zeros."""
        batch = len(inputs[0])
        size = batch if batch == 1 else min(self.at_once, rounded(batch))
        if size not in self.plans:
            self.plans[size] = plan(self.graph, self.tensors, size)
        chosen = self.plans[size]
        if size != batch:
            inputs = [np.concatenate([x, np.zeros((size - batch, *x.shape[1:]), x.dtype)]) for x in inputs]
        try:
            arena = self.arenas.pop()  # of another thread's there is none
        except IndexError:
            arena = np.empty(0, np.float32)
        if len(arena) < chosen.arena:
            arena = _aligned(chosen.arena)
        try:
            return [y[:batch] for y in chosen.run(self.execute, inputs, arena)]
        finally:
            self.arenas.append(arena)


def _aligned(floats: int) -> np.ndarray:
    """Return an array that begins with a cache line: a vector on two of them costs two reads."""
    line = 64
    arena = np.empty(floats + line // 4, np.float32)
    start = -arena.ctypes.data % line // 4
    return arena[start : start + floats]


def images_at_once(graph: Mapping[str, Any]) -> int:
    """Return how many images to take at a time: as many columns as keep the kernels busy, and no more, so
    that the values stay in the cache."""
    planes = [math.prod(node["shape"][1:]) for node in graph["nodes"] if len(node["shape"]) > 1]
    return 64 if not planes else max(1, min(64, 8192 // max(planes)))


def plan(graph: Mapping[str, Any], tensors: Weights, batch: int) -> Plan:
    """Lay a program out for ``batch`` images; raises UnsupportedError where the kernels lack something."""
    shapes = {given["name"]: tuple(given["shape"][1:]) for given in graph["inputs"]}
    shapes |= {node["output"]: tuple(node["shape"]) for node in graph["nodes"]}
    nodes = _fused(graph, shapes, batch)
    last = {name: i for i, node in enumerate(nodes) for name in _reads(node)}
    last |= dict.fromkeys(graph["outputs"], len(nodes))
    space, places, at = Workspace(batch, _border(nodes)), {}, 0
    for given in graph["inputs"]:
        if given["dtype"] != "float32":
            raise UnsupportedError(f"an input of {given['dtype']}")
        shape = shapes[given["name"]]
        place = space.outside(at, shape)
        # What only changes its shape is read where it is.
        if not all(node["op"] == "reshape" for node in nodes if given["name"] in _reads(node)):
            source, place = place, space.clear(space.new(shape))
            space.copy(source, place)
        places[given["name"]] = place
        at += batch * math.prod(shape)
    for i, node in enumerate(nodes):
        if node["op"] not in INSTRUCTIONS:
            raise UnsupportedError(f"the operator {node['op']}")
        given = [places[name] for name in _reads(node)]
        place = INSTRUCTIONS[node["op"]](space, node, given, tensors)
        places[node["output"]] = place
        for name in {*_reads(node), node["output"]}:
            if last.get(name, -1) <= i:
                space.release(places.pop(name))
    at = 0
    for name in graph["outputs"]:
        space.copy(places[name], space.outside(at, shapes[name]))
        at += batch * math.prod(shapes[name])
    table = np.zeros((len(space.table), max(len(row) for row in space.table)), np.int64)
    for i, row in enumerate(space.table):
        table[i, : len(row)] = row
    outputs = tuple((batch, *shapes[name]) for name in graph["outputs"])
    return Plan(batch, space.size + _reach(nodes, shapes, batch), outputs, table, space.numbers())


def _reads(node: Operator) -> list[str]:
    return [*node["inputs"], *([node["residual"]] if "residual" in node else [])]


def _border(nodes: Sequence[Operator]) -> tuple[int, int]:
    """Return how many rows and columns of zeros the convolutions need beside an image."""
    convs = [node for node in nodes if node["op"] == "conv"]
    needed = [
        [-(-p // s) for p, s in zip(pair(n["padding"], 0), pair(n["stride"], 1), strict=True)] for n in convs
    ]
    return max((down for down, _ in needed), default=0), max((right for _, right in needed), default=0)


def _reach(nodes: Sequence[Operator], shapes: Mapping[str, tuple[int, ...]], batch: int) -> int:
    """Return how far beyond the last value columns that are thrown away read."""
    reach = _VECTOR_SLACK
    down, right = _border(nodes)
    for node in nodes:
        if node["op"] == "conv":
            kernel, dilation = pair(node["kernel"], 1), pair(node["dilation"], 1)
            # What has more outputs than columns is first copied with its padding around it.
            width = sizes(shapes[node["inputs"][0]])[2] + 2 * pair(node["padding"], 0)[1] + right
            rows = kernel[0] * dilation[0] + down
            reach = max(reach, _VECTOR_SLACK + rows * width + kernel[1] * dilation[1] + right)
    return rounded(reach)


def _fused(
    graph: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], batch: int
) -> list[dict[str, Any]]:
    """Return the nodes, where a layer adds the other summand of a sum itself and applies a clamp after it."""
    nodes = [dict(node) for node in graph["nodes"]]
    made = {given["name"]: -1 for given in graph["inputs"]} | {n["output"]: i for i, n in enumerate(nodes)}
    readers: dict[str, list[int]] = {name: [] for name in made}
    for i, node in enumerate(nodes):
        for name in node["inputs"]:
            readers[name].append(i)
    for name in graph["outputs"]:
        readers[name].append(-1)
    gone: set[int] = set()

    def after(node: Operator, *kinds: str) -> dict[str, Any] | None:
        """The one node that reads this one's output, if it is of these kinds."""
        found = readers[node["output"]]
        single = len(found) == 1 and found[0] >= 0 and node.get("activation") is None
        return nodes[found[0]] if single and nodes[found[0]]["op"] in kinds else None

    def swallow(node: dict[str, Any], other: Operator, extra: Mapping[str, Any]) -> None:
        gone.add(made[other["output"]])
        made[other["output"]] = made[node["output"]]
        node |= {**extra, "output": other["output"]}

    for i, node in enumerate(nodes):
        if i in gone:
            continue
        sum_ = after(node, "add") if _writes_in_place(node, shapes, batch) else None
        if sum_ is not None and len(set(sum_["inputs"])) == 2:
            (other,) = (name for name in sum_["inputs"] if name != node["output"])
            if made[other] < i and shapes[other] == tuple(sum_["shape"]):
                swallow(node, sum_, {"residual": other})
        clamp = after(node, *_CLAMPS)
        if clamp is not None and node["op"] in ("conv", "linear", "add", "sub", "mul", "div", "scale"):
            settings = {name: clamp[name] for name in ACTIVATIONS[clamp["op"]].settings}
            swallow(node, clamp, {**settings, "activation": clamp["op"]})
    left = [node for i, node in enumerate(nodes) if i not in gone]
    for node in left:
        follow = [other for other in left if node["output"] in _reads(other)]
        node["wide"] = node["output"] not in graph["outputs"] and all(map(_takes_any_rows, follow))
    return left


def _takes_any_rows(node: Operator) -> bool:
    """Whether an operator reads its input wherever the rows are, without zeros between them."""
    if node["op"] == "conv":
        return "residual" not in node and not any(node["padding"])
    return node["op"] in ("max_pool", "avg_pool", "mean", "sum", "amax", "reshape", "slice", "pad", "cat")


def _writes_in_place(node: Operator, shapes: Mapping[str, tuple[int, ...]], batch: int) -> bool:
    """Whether a layer's output has planes like its input's, or like those of its strided phases."""
    if node["op"] == "linear":
        return batch > 1 and len(node["shape"]) == 1
    if node["op"] != "conv":
        return False
    source, shape = sizes(shapes[node["inputs"][0]])[1:], sizes(node["shape"])[1:]
    return all(-(-n // s) == o for n, s, o in zip(source, pair(node["stride"], 1), shape, strict=True))
