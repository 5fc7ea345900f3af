"""Which constants hold on inputs of every size.

A unit that is the same number all over the example need not be that number elsewhere: behind a sum
over time it grows with the length. Its constant lasts where it comes from zero rows, or from an
even parameter, and every operator on the way to the reader keeps a constant what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from torch import fx, nn

from secateur.graph.calls import Call
from secateur.graph.capture import tensor_of
from secateur.graph.operators import operator_of
from secateur.structure.labels import Array
from secateur.structure.propagate import values_in
from secateur.structure.units import Group, Structure, all_zero

_FIRST = "input"  # what depends on the caller's tensors in a way that is not followed


class Constancy:
    """Follows the constants of the units of one group from where they are made to who reads them."""

    def __init__(self, work: nn.Module, structure: Structure, group: Group) -> None:
        self.work, self.walk, self.group = work, structure.walk, group
        self.classes = structure.classes
        self.own = np.unique(structure.classes_of(group.slices[0]))
        self.blocked: set[str] = set()

    def at(self, operand: fx.Node) -> Array:
        """Return by unit whether the constant it may have in ``operand`` lasts; what stands in the
        way goes into ``blocked``."""
        sources: dict[fx.Node, list[fx.Node]] = {}
        waiting = [operand]
        while waiting:
            node = waiting.pop()
            if node not in sources:
                sources[node] = self._sources(node)
                waiting += sources[node]
        found: dict[fx.Node, Array] = {}
        for node in operand.graph.nodes:  # arguments come before what is made of them
            if node in sources:
                found[node] = self._judged(node, [(n, found[n]) for n in sources[node]])
        return found[operand]

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the arguments on which it hangs whether a node's constants last."""
        call, row = Call(node), operator_of(Call(node))
        if row.kind == "joins":
            return [n for n in node.all_input_nodes if self._carries(n)]
        if row.kind == "pointwise":
            return node.all_input_nodes
        alone = row.keeps_constants or call.operator is operator.getitem or _averages(call)
        return [n for n in node.args[:1] if isinstance(n, fx.Node)] if alone else []

    def _judged(self, node: fx.Node, sources: list[tuple[fx.Node, Array]]) -> Array:
        call, row, no = Call(node), operator_of(Call(node)), np.zeros(len(self.group), dtype=bool)
        if node.op == "placeholder":
            return self._even(node)
        if row.kind in ("affine", "norm"):
            own = self._zero(call.arguments.get(row.weight or ""))
            statistics = call.arguments.get("training") or not row.keeps_constants
            return own if statistics else own | sources[0][1]
        unfit = not sources or _changed(call) or (_averages(call) and not _even_pool(call))
        if unfit or (not self._carries(node) and any(self._carries(source) for source, _ in sources)):
            self.blocked.add(_FIRST if call.schema is None else call.name.rstrip("_"))
            return no
        return np.logical_and.reduce([lasts for _, lasts in sources])

    def _carries(self, node: fx.Node) -> bool:
        """Whether units of the group have a place of their own in a node's tensors."""
        return any(
            np.isin(self.classes.of[labels], self.own).any()
            for value in values_in(self.walk.values.get(node))
            for labels in value.dims
            if labels is not None
        )

    def _even(self, node: fx.Node) -> Array:
        """Parameters, buffers and constants: whether what a unit has there is one number."""
        name = self.walk.named.get(node)
        parts = [part for part in self.group.slices if part.name == name]
        if not parts:
            constants = self.walk.captured.constants
            tensor = constants.get(node.name) if name is None else tensor_of(self.work, name)
            even = tensor is not None and bool((tensor == tensor.reshape(-1)[:1]).all())
            if not even:
                self.blocked.add(_FIRST)
            return np.full(len(self.group), even)
        lasts = np.ones(len(self.group), dtype=bool)
        for part in parts:
            tensor = tensor_of(self.work, part.name)
            rows = tensor.detach().movedim(part.dim, 0).reshape(tensor.shape[part.dim], -1)
            lasts &= (rows == rows[:, :1]).all(1).cpu().numpy()[part.indices].all(1)
        return lasts

    def _zero(self, weight: Any) -> Array:
        """Which units' rows of a weight are all zero, so that only a bias is left."""
        name = self.walk.named.get(weight) if isinstance(weight, fx.Node) else None
        parts = [part for part in self.group.slices if part.name == name and not part.reads]
        zero = np.full(len(self.group), bool(parts))
        for part in parts:
            zero &= all_zero(self.group, partial(tensor_of, self.work), lambda p, part=part: p is part)
        return zero


def _averages(call: Call) -> bool:
    return "count_include_pad" in call.arguments


def _even_pool(call: Call) -> bool:
    """Whether an average pool takes the mean of what it sees, without zeros of padding."""
    padding = call.arguments["padding"]
    padded = any(padding) if isinstance(padding, Iterable) else bool(padding)
    counted = padded and call.arguments["count_include_pad"]
    return call.arguments.get("divisor_override") is None and not counted


def _changed(call: Call) -> bool:
    """Whether a result is written to afterwards with anything but numbers."""
    users = [Call(user) for user in call.node.users if user.args[:1] == (call.node,)]
    return any(
        user.in_place and (len(user.node.all_input_nodes) > 1 or operator_of(user).kind != "pointwise")
        for user in users
    )
