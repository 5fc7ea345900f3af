"""Walk a captured graph and give every dim of every tensor its labels.

What a call does to labels is said by rules that the walk is given (``secateur.structure.rules``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from secateur.graph.calls import Call
from secateur.graph.capture import Captured, module_of
from secateur.graph.operators import plain
from secateur.structure.labels import Array, Labels
from secateur.structure.replaced.norms import kind_of

aten = torch.ops.aten
# What gives a piece, or pieces, of a tensor.
PICKS = frozenset(
    [
        *(aten.slice, aten.narrow, aten.select, aten.index_select, aten.index, operator.getitem),
        *(aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unbind),
        *(aten.unsafe_split, aten.unsafe_chunk),
    ]
)
OUTPUT = "model output"
LEFT = "its numbers are read by Python"
UNUSED = "this forward does not use it"
PARTLY = "this forward reads a part of it"
UNPRUNABLE = "combined with an unprunable tensor"


@dataclass
class Labelled:
    """A tensor of the graph: per dim its labels (None: never prunable), and per dim whether the
    entries that go hold exactly zero in the masked network."""

    shape: tuple[int, ...]
    dims: list[Array | None]
    zero: list[bool]
    dtype: torch.dtype = torch.float32

    @classmethod
    def plain(cls, shape: Iterable[int], dtype: torch.dtype = torch.float32) -> Labelled:
        """A tensor without labels: an input, or a result whose dims all stay."""
        shape = tuple(shape)
        return cls(shape, [None] * len(shape), [False] * len(shape), dtype)

    def copy(self) -> Labelled:
        return Labelled(self.shape, list(self.dims), list(self.zero), self.dtype)

    def labels(self) -> list[tuple[int, Array]]:
        """The dims that have labels, with them."""
        return [(dim, labels) for dim, labels in enumerate(self.dims) if labels is not None]

    def labelled(self) -> list[int]:
        return [dim for dim, _ in self.labels()]


@dataclass(frozen=True)
class Read:
    """A place where a parameter is contracted with an activation: ``operand``'s dim ``dim`` with
    the dim ``weight_dim`` of the parameter ``weight``. ``padded``: zeros of padding are read too."""

    node: fx.Node
    operand: fx.Node
    dim: int
    weight: str
    weight_dim: int
    bias: str | None
    padded: bool


@dataclass
class Walk:
    """One walk over a graph: the labels, the value of each node, and what was noted on the way.

    ``named``: parameters by node; ``owner``: by value; ``reads`` and ``contracted``: where parameters
    sum over activations; ``consumed``: labels summed over in any other way; ``repeated``: labels of
    what is one number all along; ``macs`` by weight; ``unmasked``: dims of parameters that masking
    leaves alone; ``parts``: pieces cut from a dim; ``streams``: norms that surgery keeps exact freeze
    nothing; ``graph``: nor does what a graph keeps exact, means over zeros, and statistics of weights, whose
    labels are ``statistics``, taken by the nodes ``measured``; ``kinds``: by module path what it normalises
    like; ``fixed``: the nodes that depend on no input; ``written``: names of the tensors written into the
    forward, by value. ``rule`` gives the value of a call.
    """

    captured: Captured
    rule: Callable[[Walk, Call], Any]
    streams: bool = False
    graph: bool = False
    labels: Labels = field(default_factory=Labels)
    parameters: dict[str, Labelled] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    named: dict[fx.Node, str] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    macs: dict[str, float] = field(default_factory=dict)
    unmasked: set[tuple[str, int]] = field(default_factory=set)
    parts: dict[tuple[fx.Node, int], list[tuple[int, Array]]] = field(default_factory=dict)
    contracted: set[tuple[str, int]] = field(default_factory=set)
    owner: dict[int, str] = field(default_factory=dict)
    consumed: list[Array] = field(default_factory=list)
    repeated: list[Array] = field(default_factory=list)
    statistics: list[Array] = field(default_factory=list)
    kinds: dict[str, str | None] = field(default_factory=dict)
    fixed: set[fx.Node] = field(default_factory=set)
    written: dict[int, str] = field(default_factory=dict)
    measured: set[fx.Node] = field(default_factory=set)

    @property
    def rounds(self) -> bool:
        """Whether what surgery mends is rounded to the dtype of the network."""
        return self.streams or bool(self.statistics)

    # -- relations ---------------------------------------------------------------------------

    def fresh(self, number: int) -> Array:
        return self.labels.fresh(number)

    def freeze(self, value: Labelled, dims: Iterable[int], reason: str) -> None:
        """Freeze the labels of some dims of a value."""
        for dim in dims:
            labels = value.dims[dim]
            if labels is not None:
                self.labels.freeze(labels, reason)

    def freeze_all(self, values: Iterable[Labelled], reason: str) -> None:
        for value in values:
            self.freeze(value, range(len(value.dims)), reason)

    def join(self, parts: list[tuple[Labelled, int]], reason: str = UNPRUNABLE) -> Array | None:
        """Tie the given dims of several values; one without labels freezes the others."""
        known = [v.dims[d] for v, d in parts if v.dims[d] is not None]
        sizes = {v.shape[d] for v, d in parts}
        if len(known) < len(parts) or len(sizes) > 1:
            names = [self.written[id(v)] for v, _ in parts if id(v) in self.written]
            if names and reason == UNPRUNABLE:
                reason = f"combined with {names[0]}, a tensor that is no parameter or buffer"
            for labels in known:
                self.labels.freeze(labels, reason)  # type: ignore[arg-type]
        if not known or len(sizes) > 1:
            return None
        for labels in known[1:]:
            self.labels.tie(known[0], labels)  # type: ignore[arg-type]
        return known[0]

    def contract(self, a: Labelled, dim_a: int, b: Labelled, dim_b: int) -> None:
        """Sum over a dim that both values have: exact if what goes is zero in one of them."""
        if a.shape[dim_a] == 1 and b.shape[dim_b] == 1:
            return
        owned = [(self.owner[id(v)], d) for v, d in ((a, dim_a), (b, dim_b)) if id(v) in self.owner]
        self.contracted |= set(owned)
        for value, dim in ((a, dim_a), (b, dim_b)):
            if not owned and value.dims[dim] is not None:
                self.consumed.append(value.dims[dim])  # type: ignore[arg-type]
        self.join([(a, dim_a), (b, dim_b)])
        if not (a.zero[dim_a] or b.zero[dim_b]):
            self.freeze(a, [dim_a], "summed where what goes is not zero")
            self.freeze(b, [dim_b], "summed where what goes is not zero")

    def note(
        self,
        node: fx.Node,
        operand: Any,
        dim: int,
        weight: Any,
        weight_dim: int,
        bias: Any,
        padded: bool = False,
    ) -> None:
        """Write down that a parameter reads an activation; of what is no parameter nothing is noted."""
        name = self.named.get(weight)
        if name is not None:
            of_bias = self.named.get(bias) if isinstance(bias, fx.Node) else None
            self.reads.append(Read(node, operand, dim, name, weight_dim, of_bias, padded))

    def count(self, weight: Any, macs: float) -> None:
        """Add the multiply-adds of a parameter."""
        name = self.named.get(weight)
        if name is not None:
            self.macs[name] = self.macs.get(name, 0.0) + macs

    # -- walking -----------------------------------------------------------------------------

    def run(self) -> None:
        """Walk the whole graph."""
        captured = self.captured
        unused: list[str] = []
        for node in captured.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in captured.tensors:
                name = captured.tensors[node.name]
                self.named[node] = name
                self.fixed.add(node)
                self.values[node] = self._parameter(name, captured.tensor(name))
                if not node.users:
                    unused.append(name)
                tensor = captured.tensor(name)
            elif node.name in captured.constants:
                tensor = captured.constants[node.name]
                self.fixed.add(node)
                self.values[node] = plain = Labelled.plain(tensor.shape, tensor.dtype)
                self.written[id(plain)] = node.name.removeprefix("c_")
            else:
                self.values[node] = plain_of(node.meta.get("val"))
                continue
            if not tensor.is_floating_point() and tensor.device.type != "meta":
                self.constants[node] = tensor
        self.walk(captured.graph)
        used = {self.named[node] for node in self.named if node.users}
        for name in set(unused) - used:
            self.freeze_all([self.parameters[name]], UNUSED)
        self._freeze_read_in_part()
        if self.statistics:
            # Zeros in a column would change the others by the statistics, so that it keeps its values.
            known = np.concatenate(self.statistics)
            for name, value in self.parameters.items():
                of = ((name, dim) for dim, labels in value.labels() if np.isin(labels, known).any())
                self.unmasked.update(of)

    def _freeze_read_in_part(self) -> None:
        """Freeze the dims of parameters of which this forward reads some indices only: others may be read
        on other inputs, and would stand elsewhere then."""
        pieces: dict[str, list[fx.Node]] = {}
        for node, name in self.named.items():
            pieces.setdefault(name, []).extend(_ends_of_picks(node))
        for name, ends in pieces.items():
            if not ends or any(end in self.named for end in ends):  # not read, or whole
                continue
            found = [
                labels for end in ends for v in values_in(self.values.get(end)) for _, labels in v.labels()
            ]
            known = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *found]))
            for _, labels in self.parameters[name].labels():
                if not np.isin(labels, known).all():
                    self.labels.freeze(labels, PARTLY)

    def measure(self, node: fx.Node, value: Labelled, dims: Iterable[int], reason: str) -> None:
        """Take statistics of a value over some dims, which freezes them, but for a weight's in a graph:
        there it is computed once and for all."""
        if not (self.graph and node in self.fixed):
            self.freeze(value, dims, reason)
            return
        self.measured.add(node)
        for dim in dims:
            if value.dims[dim] is not None:
                self.statistics.append(value.dims[dim])  # type: ignore[arg-type]

    def walk(self, graph: fx.Graph) -> Any:
        """Walk the nodes of a graph (or of one inside it) after its placeholders."""
        for node in graph.nodes:
            if node.op == "call_function":
                if node.all_input_nodes and self.fixed.issuperset(node.all_input_nodes):
                    self.fixed.add(node)
                self._fold(node)
                self.values[node] = self.rule(self, Call(node))
            elif node.op == "output":
                for used in node.all_input_nodes if graph is self.captured.graph else ():
                    self.freeze_all(values_in(self.values.get(used)), OUTPUT)
                for used in self.captured.left if graph is self.captured.graph else ():
                    self.freeze_all(values_in(self.values.get(used)), LEFT)
                return node.args[0]
        return None

    def _parameter(self, name: str, tensor: Tensor) -> Labelled:
        if name not in self.parameters:
            floating = tensor.is_floating_point() and tensor.numel() > 0
            dims = [self.fresh(n) if n > 1 and floating else None for n in tensor.shape]
            masked = floating and name not in self.captured.buffers
            self.parameters[name] = Labelled(tuple(tensor.shape), dims, [masked] * len(dims), tensor.dtype)
            self.owner[id(self.parameters[name])] = name
        return self.parameters[name]

    def _fold(self, node: fx.Node) -> None:
        """Compute integer tensors that depend on constants alone: indices, masks, positions."""
        out = node.meta.get("val")
        if not isinstance(out, Tensor) or out.is_floating_point() or out.numel() > 10_000_000:
            return
        others = [self.values.get(n) for n in node.all_input_nodes if n not in self.constants]
        if any(isinstance(value, (Labelled, list, tuple)) for value in others):
            return
        try:
            with torch.no_grad():
                result = Call(node).run(lambda n: self.constants.get(n, self.values.get(n)))
        except Exception:  # what cannot be computed stays unknown, and what it indexes is frozen and named
            return
        if isinstance(result, Tensor) and result.device.type != "meta":
            self.constants[node] = result

    # -- looking things up --------------------------------------------------------------------

    def innermost(self, node: fx.Node) -> str | None:
        """Return the path of the module whose forward calls a node."""
        return next(iter(Call(node).modules), None)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module whose forward calls a node."""
        path = self.innermost(node)
        try:
            return None if path is None else module_of(self.captured.model, path)
        except AttributeError:
            return None

    def norm_kind(self, node: fx.Node) -> str | None:
        """Return what the module around a node normalises like, if surgery can keep that exact."""
        path = self.innermost(node)
        if path is not None and path not in self.kinds:
            self.kinds[path] = kind_of(self.module(node))
        return None if path is None else self.kinds[path]

    def argument(self, arg: Any) -> Any:
        """Return an argument with nodes replaced by their values."""
        return fx.map_arg(arg, lambda n: self.values.get(n))


def _ends_of_picks(node: fx.Node) -> list[fx.Node]:
    """Return the nodes at which a parameter is read, or pieces of it: those that pick from pieces are passed
    over."""
    found = []
    for user in node.users:
        picks = user.op == "call_function" and plain(Call(user).operator) in PICKS and user.args[0] is node
        found += _ends_of_picks(user) if picks else [node]
    return found


def values_in(value: Any) -> list[Labelled]:
    """Return the labelled tensors in a nested list or tuple."""
    if isinstance(value, Labelled):
        return [value]
    if isinstance(value, (list, tuple)):
        return [v for part in value for v in values_in(part)]
    if isinstance(value, dict):
        return [v for part in value.values() for v in values_in(part)]
    return []


def result_of(node: fx.Node) -> Labelled:
    """Return a label-free value of the shape of the node's result."""
    value = plain_of(node.meta["val"])
    assert isinstance(value, Labelled), node
    return value


def plain_of(example: Any) -> Any:
    if isinstance(example, Tensor):
        return Labelled.plain([int(n) for n in example.shape], example.dtype)
    if isinstance(example, (list, tuple)):
        return [plain_of(part) for part in example]
    if isinstance(example, (torch.SymInt, torch.SymFloat)):
        hint = example.node.hint
        return example if hint is None else hint
    return example
