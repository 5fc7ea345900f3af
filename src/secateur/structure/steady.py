"""Which constants hold on inputs of every size.

A unit that is the same number all over the example need not be that number elsewhere: behind a sum
over time it grows with the length. Its constant is steady where it comes from zero rows, or from an
even parameter, and every operator on the way to the reader keeps a constant what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from secateur.graph.capture import tensor_of
from secateur.structure.labels import Array
from secateur.structure.propagate import values_in
from secateur.structure.tables import MOVES, POINTWISE, SAME, names
from secateur.structure.units import Group, Structure, living

_FIRST = "input"  # what depends on the caller's tensors in a way that is not followed
_PADS = frozenset(names("pad constant_pad_nd zero_pad2d im2col"))
_MADE = frozenset(
    names(
        """
        linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
        embedding layer_norm group_norm instance_norm rms_norm
        """
    )
)
_KEPT = (MOVES - _PADS) | frozenset(
    names(
        """
        mean amax amin glu max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d
        upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
        upsample_trilinear3d
        """
    )
)


class Steady:
    """Follows the constants of the units of one group from where they are made to who reads them."""

    def __init__(self, work: nn.Module, structure: Structure, group: Group) -> None:
        self.work, self.walk, self.group = work, structure.walk, group
        self.classes = structure.classes
        first = group.slices[0]
        labels = self.walk.parameters[first.name].dims[first.dim]
        assert labels is not None
        self.own = np.unique(self.classes.of[labels[first.indices]])
        self.blocked: set[str] = set()

    def at(self, operand: fx.Node) -> Array:
        """Return by unit whether the constant it may have in ``operand`` is steady; what stands in the
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
        """Return the arguments on which it hangs whether a node's constants are steady."""
        kind = _kind(node)
        if kind in ("cat", "concat", "stack"):
            return [n for n in node.all_input_nodes if self._carries(n)]
        if kind in _KEPT or kind in SAME or kind in ("batch_norm", "avg_pool") or _is_getitem(node):
            return [n for n in node.args[:1] if isinstance(n, fx.Node)]
        return node.all_input_nodes if _is_pointwise(node, kind) else []

    def _judged(self, node: fx.Node, sources: list[tuple[fx.Node, Array]]) -> Array:
        kind, no = _kind(node), np.zeros(len(self.group), dtype=bool)
        if node.op == "placeholder":
            return self._even(node)
        if kind in _MADE:
            return self._zero(_arguments(node).get("weight"))
        if kind == "batch_norm":
            own = self._zero(_arguments(node).get("weight"))
            return own if _arguments(node).get("training") else own | sources[0][1]
        if not sources or _changed(node) or (kind == "avg_pool" and not _even_pool(node)):
            self.blocked.add(kind or _FIRST)
            return no
        if not self._carries(node) and any(self._carries(source) for source, _ in sources):
            self.blocked.add(kind or _FIRST)
            return no
        return np.logical_and.reduce([steady for _, steady in sources])

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
        steady = np.ones(len(self.group), dtype=bool)
        for part in parts:
            tensor = tensor_of(self.work, part.name)
            rows = tensor.detach().movedim(part.dim, 0).reshape(tensor.shape[part.dim], -1)
            steady &= (rows == rows[:, :1]).all(1).cpu().numpy()[part.indices].all(1)
        return steady

    def _zero(self, weight: Any) -> Array:
        """Which units' rows of a weight are all zero, so that only a bias is left."""
        name = self.walk.named.get(weight) if isinstance(weight, fx.Node) else None
        parts = [part for part in self.group.slices if part.name == name and not part.reads]
        zero = np.full(len(self.group), bool(parts))
        for part in parts:
            zero &= ~living(self.group, partial(tensor_of, self.work), lambda p, part=part: p is part)
        return zero


def _kind(node: fx.Node) -> str:
    """The plain name of a node's operator; pools of every rank are one, and so are batch norms."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    name = node.target._schema.name.split("::")[-1]
    name = name if name.startswith("__") else name.rstrip("_")
    if name.startswith("avg_pool"):
        return "avg_pool"
    return "batch_norm" if "batch_norm" in name else name


def _is_getitem(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _is_pointwise(node: fx.Node, kind: str) -> bool:
    target = node.target
    tagged = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return tagged or kind in POINTWISE or kind == "prelu"


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return a call's arguments by the names of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return given | dict(node.kwargs)


def _even_pool(node: fx.Node) -> bool:
    """Whether an average pool takes the mean of what it sees, without zeros of padding."""
    arguments = _arguments(node)
    padding = arguments.get("padding", 0)
    padded = any(padding) if isinstance(padding, Iterable) else bool(padding)
    counted = arguments.get("count_include_pad", True)
    return arguments.get("divisor_override") is None and not (padded and counted)


def _changed(node: fx.Node) -> bool:
    """Whether a node is written to afterwards with anything but numbers."""
    return any(
        isinstance(user.target, torch._ops.OpOverload)
        and user.target._schema.is_mutable
        and user.args[:1] == (node,)
        and (len(user.all_input_nodes) > 1 or not _is_pointwise(user, _kind(user)))
        for user in node.users
    )
