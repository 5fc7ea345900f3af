"""What a network puts out with one unit removed, for many units fast.

Removing a unit changes nothing before the layers that read it. So a batch runs once up to there; the
share that a unit has in their outputs is computed from its own channels alone and subtracted (the
next-layer delta); and what follows runs for many units at once, stacked along the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from secateur.errors import ModelError
from secateur.graph.calls import Call
from secateur.graph.capture import capture
from secateur.graph.compare import difference
from secateur.graph.operators import operator_of, plain
from secateur.graph.run import Bound, Values
from secateur.running import call, in_full_precision
from secateur.structure.dead import readers_of
from secateur.structure.labels import Array
from secateur.structure.propagate import Read
from secateur.structure.surgery import mask_units
from secateur.structure.units import Structure
from secateur.text import first_line

Example = tuple[tuple[Any, ...], dict[str, Any]]

_TENSORS, _MOST = 4, 64  # of the largest size at the same time; units in a stack
_TRIED = 4  # units of a group that the shortcut is checked on
_CLOSE = 1e-3  # float32 sums in another order stay far under it, a shortcut that is wrong far over


class Ablation:
    """Runs ``model`` with single units of a ``structure`` of it removed, on batches like ``example``.

    What one stack of units takes stays under ``memory`` bytes, beside the values of one batch. ``slow``
    names the groups whose units do not go this way and why: each unit of theirs takes a whole forward.
    """

    def __init__(self, model: nn.Module, structure: Structure, example: Example, memory: int) -> None:
        self.model, self.structure, self.memory = model, structure, memory
        self.batch = _batch(example)
        readers = readers_of(structure)
        self.slow: dict[str, str] = {}
        graph = Bound(structure.captured, model)
        self.ways: dict[str, _Way] = {}
        for name in structure.groups:
            if readers[name] and all(read.node in graph.at for read in readers[name]):
                self.ways[name] = _way(graph, readers[name])
            else:
                self.slow[name] = "not all that reads it is a plain product"
        self.stacks = {name: _stack(graph, way, self.batch, memory) for name, way in self.ways.items()}
        self.graphs: dict[int, Bound] = {}
        try:
            for stack in {1, *self.stacks.values()}:
                self.graphs[stack] = Bound(capture(model, *_shaped(example, stack)), model)
                if _operators(self.graphs[stack]) != _operators(graph):
                    raise ModelError("another batch makes other operators, or has other inputs")
            self._check(example)
        except (ModelError, RuntimeError, TypeError, ValueError) as error:
            reason = f"its graph does not run on stacked batches: {first_line(error)}"
            self.slow |= dict.fromkeys(self.ways, reason)
            self.ways = {}

    def _check(self, example: Example) -> None:
        """Hand every group over to ``slow`` of which some units do not give what masking them gives."""
        sizes = {name: len(self.structure.groups[name]) for name in self.ways}
        some = {n: np.unique(np.linspace(0, size - 1, _TRIED).astype(int)) for n, size in sizes.items()}
        with in_full_precision():
            found_by_unit = list(self.outputs(example, some))
        for name, units, stacked in found_by_unit:
            for row, unit in enumerate(units):
                found = _pytree.tree_map(lambda t, i=row: t[i], stacked)
                if difference(self._masked(name, int(unit), example), found) > _CLOSE and name in self.ways:
                    self.slow[name] = "its shortcut gives other outputs than the masked network"
                    del self.ways[name]

    @torch.no_grad()
    def outputs(self, example: Example, units: Mapping[str, Array]) -> Iterator[tuple[str, Array, Any]]:
        """Yield (group, some of its units, outputs): for each of ``units`` removed alone, what the
        network puts out for a batch, stacked as (unit, example, ...)."""
        ways = [self.ways[name] for name in units if name in self.ways]
        before = self._before(example, {index for way in ways for index in way.need})
        for name, some in units.items():
            if name not in self.ways:
                for unit in some:
                    out = self._masked(name, int(unit), example)
                    yield name, np.array([unit]), _pytree.tree_map(lambda t: t[None], out)
                continue
            stack = self.stacks[name]
            shared = self._shared(name, before)
            for start in range(0, len(some), stack):
                part = some[start : start + stack]
                yield name, part, self._stacked(name, part, before, shared)

    @torch.no_grad()
    def changes(self, example: Example, name: str, units: Array) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (reader, outputs, parts), for some examples of a batch at a time: the outputs of a layer
        that reads a group first, flattened, and what goes of them with each unit, as (unit, output)."""
        way = self.ways[name]
        before = self._before(example, way.need)
        for reader, operand, read in way.first:
            size = before[reader][0].numel() * before[reader].element_size() * len(units)
            step = max(1, self.memory // size)
            for x, y in zip(before[operand].split(step), before[reader].split(step), strict=True):
                parts = [self._delta(reader, x, self._entries(name, read, unit)) for unit in units]
                yield reader, y.flatten(), torch.stack([part.flatten() for part in parts])

    def _masked(self, name: str, unit: int, example: Example) -> Any:
        return masked_outputs(self.model, self.structure, name, unit, example)

    def _before(self, example: Example, need: Set[int]) -> Values:
        return self.graphs[1].values(*example, need) if need else {}

    def _shared(self, name: str, before: Values) -> Values:
        """What all stacks read of the values before: those of the inputs repeated for each unit, the others
        (a first state of zeros, say) as a stack has them."""
        batched, stack = self.graphs[1].of_inputs, self.stacks[name]
        graph, shared = self.graphs[stack], self.ways[name].shared
        own = graph.values(graph.captured.args, graph.captured.kwargs, shared - batched)
        return own | {index: _repeated(before[index], stack) for index in shared & batched}

    def _stacked(self, name: str, units: Array, before: Values, shared: Values) -> Any:
        way, values = self.ways[name], dict(shared)
        number, graph = self.stacks[name], self.graphs[self.stacks[name]]
        for index, operand, read in way.first:
            whole = before[index]
            rows = _like(whole, number).unflatten(0, (number, -1))
            rows[len(units) :] = whole
            for row, unit in zip(rows, units, strict=False):
                delta = self._delta(index, before[operand], self._entries(name, read, unit))
                torch.sub(whole, delta, out=row)
            values[index] = rows.flatten(0, 1)
        for index in way.affected:
            later = way.later.get(index, ())
            instead = {at: self._without(name, units, values[at], read) for at, read in later}
            values[index] = graph.run(index, values, instead)
            for read in way.last.get(index, ()):
                values.pop(read, None)
        flat = [t.unflatten(0, (number, -1))[: len(units)] for t in values[way.affected[-1]]]
        return graph.rebuilt(flat)

    def _without(self, name: str, units: Array, operand: Tensor, read: Read) -> Tensor:
        """A stacked operand with the entries of each unit zeroed in its own part."""
        rest = operand.unflatten(0, (-1, self.batch)).clone()
        for row, unit in zip(rest, units, strict=False):
            entries = torch.from_numpy(self._entries(name, read, unit)).to(row.device)
            row.index_fill_(read.dim, entries, 0)
        return rest.flatten(0, 1)

    def _entries(self, name: str, read: Read, unit: int) -> Array:
        """The indices of a unit in the dim that a layer reads."""
        return self.structure.groups[name].read_by(read).indices[unit]

    def _delta(self, index: int, operand: Tensor, entries: Array) -> Tensor:
        """What some entries of its operand make of a linear or a convolutional layer's output."""
        graph = self.graphs[1]
        node = graph.nodes[index]
        weight = _some(graph.fixed[graph.at[node.args[1]]], 1, entries)  # type: ignore[index]
        dim = operand.dim() - 1 if _is_linear(Call(node)) else 1
        return node.target(_some(operand, dim, entries), weight, None, *node.args[3:])  # type: ignore[operator]


@dataclass(frozen=True)
class _Way:
    """What follows the removal of a unit, as positions in the graph: (node, operand, read) of the
    reads whose delta is subtracted (``first``), by node the (operand, read) of those that come
    ``later``, the nodes ``affected`` after the first ones, what these take of before (``shared``), what
    has to be run before (``need``: of that what depends on the inputs, and what the first ones take), and
    by node what nobody reads after it (``last``)."""

    first: tuple[tuple[int, int, Read], ...]
    later: Mapping[int, list[tuple[int, Read]]]
    affected: tuple[int, ...]
    shared: frozenset[int]
    need: frozenset[int]
    last: Mapping[int, list[int]]


def _way(graph: Bound, reads: Sequence[Read]) -> _Way:
    places = [(graph.at[read.node], graph.at[read.operand], read) for read in reads]
    first: dict[int, tuple[int, int, Read]] = {}
    later: dict[int, list[tuple[int, Read]]] = {}
    affected: list[int] = []
    touched: set[int] = set()
    for index, node in enumerate(graph.nodes):
        own = [place for place in places if place[0] == index]
        if not own and not graph.inputs_of(index) & touched:
            continue
        touched.add(index)
        if len(own) == 1 and not graph.inputs_of(index) & (touched - {index}) and _plain(node, own[0][2]):
            first[index] = own[0]
        else:
            affected.append(index)
            later[index] = [(operand, read) for _, operand, read in own]
    last: dict[int, list[int]] = {}
    for read_at, by in {at: index for index in affected for at in graph.inputs_of(index)}.items():
        last.setdefault(by, []).append(read_at)
    shared = {at for index in affected for at in graph.inputs_of(index)} - touched - graph.fixed.keys()
    need = shared & graph.of_inputs | {at for index, operand, _ in first.values() for at in (index, operand)}
    return _Way(tuple(first.values()), later, tuple(affected), frozenset(shared), frozenset(need), last)


def _plain(node: fx.Node, read: Read) -> bool:
    """Whether a read is a linear layer or an ungrouped convolution of the parameter itself."""
    call, row = Call(node), operator_of(Call(node))
    weight = call.arguments.get("weight")
    if row.kind != "affine" or row.transposed or read.weight_dim != 1 or node.kwargs:
        return False
    if not isinstance(weight, fx.Node) or weight.op != "placeholder":
        return False
    return _is_linear(call) or (read.dim == 1 and call.arguments.get("groups") == 1)


def _is_linear(call: Call) -> bool:
    return plain(call.operator) is torch.ops.aten.linear


def _operators(graph: Bound) -> list[tuple[str, str]]:
    return [(n.op, "" if n.op == "placeholder" else str(n.target)) for n in graph.nodes]


def _stack(graph: Bound, way: _Way, batch: int, memory: int) -> int:
    """Return how many units go at once: a power of two, so that few graphs are captured."""
    own = _batch((graph.captured.args, graph.captured.kwargs))
    largest = 1
    for index in (*way.affected, *(index for index, _, _ in way.first)):
        value = graph.nodes[index].meta.get("val")
        if isinstance(value, Tensor):
            largest = max(largest, value.numel() * value.element_size() // own)
    return 2 ** int(np.log2(np.clip(memory // (_TENSORS * largest * batch), 1, _MOST)))


@torch.no_grad()
def masked_outputs(model: nn.Module, structure: Structure, name: str, unit: int, example: Example) -> Any:
    """Return the outputs for a batch with one unit masked: the plain way, one whole forward a unit."""
    pruned = {name: np.arange(len(structure.groups[name])) == unit}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    before = {part.name: tensors[part.name].clone() for part in structure.groups[name].slices if part.masked}
    try:
        mask_units(model, structure, pruned)
        return call(model, *example)
    finally:
        for place, tensor in before.items():
            tensors[place].copy_(tensor)


def _some(tensor: Tensor, dim: int, entries: Array) -> Tensor:
    """Return entries of a dim: a view where they follow one another (index_select copies the whole of
    a channels-last tensor first)."""
    first, number = int(entries[0]), len(entries)
    if int(entries[-1]) - first == number - 1 and (np.diff(entries) == 1).all():
        return tensor.narrow(dim, first, number)
    return tensor.index_select(dim, torch.from_numpy(entries).to(tensor.device))


def _like(tensor: Tensor, times: int) -> Tensor:
    """Return an empty tensor with ``times`` the batch, in the same memory format."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    size = (times * tensor.shape[0], *tensor.shape[1:])
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=tensor.dtype, device=tensor.device, memory_format=form)


def _batch(example: Any) -> int:
    return len(next(leaf for leaf in _pytree.tree_leaves(example) if isinstance(leaf, Tensor)))


def _shaped(value: Any, times: int) -> Any:
    """Return tensors of the shapes of repeated ones that take no memory: one example, seen many times."""

    def shaped(leaf: Tensor) -> Tensor:
        return leaf[:1].expand(len(leaf) * times, *leaf.shape[1:]) if leaf.dim() else leaf

    return _pytree.tree_map_only(Tensor, shaped, value)


def _repeated(value: Any, times: int) -> Any:
    """Repeat every tensor along its first dim, in the memory format that it has."""
    return _pytree.tree_map_only(Tensor, lambda t: torch.cat([t] * times) if t.dim() else t, value)
