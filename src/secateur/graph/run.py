"""Run a captured graph with a model's own tensors: whole, in part, or with values replaced."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree

from secateur.graph.calls import Call
from secateur.graph.capture import Captured, tensor_of

Values = dict[int, Any]
"""What nodes hold, by position: graphs of one forward that were captured for other sizes share it."""


class Bound:
    """A captured graph bound to the tensors of ``model``, its nodes known by their position.

    ``fixed``: the tensors and constants by position; ``of_inputs``: the positions that depend on what the
    caller passes; ``memory``: by position that of the node whose memory may be its own too.
    """

    def __init__(self, captured: Captured, model: nn.Module) -> None:
        self.captured, self.model = captured, model
        self.nodes = list(captured.graph.nodes)
        self.at = {node: index for index, node in enumerate(self.nodes)}
        self.fixed: Values = {}
        self.of_inputs: set[int] = set()
        self.memory: dict[int, int] = {}
        for index, node in enumerate(self.nodes):
            of = _shared(node)
            self.memory[index] = index if of is None else self.memory[self.at[of]]
        for index, node in enumerate(self.nodes):
            if node.op == "placeholder" and node.name in captured.tensors:
                self.fixed[index] = tensor_of(model, captured.tensors[node.name])
            elif node.op == "placeholder" and node.name in captured.constants:
                self.fixed[index] = captured.constants[node.name]
            elif node.op == "placeholder" or self.inputs_of(index) & self.of_inputs:
                self.of_inputs.add(index)

    def inputs_of(self, index: int) -> set[int]:
        """Return the positions of a node's operands."""
        return {self.at[node] for node in self.nodes[index].all_input_nodes}

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
        """Return what the caller's placeholders hold for arguments like the example's."""
        leaves = iter(_pytree.tree_leaves((args, kwargs)))
        places = (i for i, node in enumerate(self.nodes) if node.op == "placeholder" and i not in self.fixed)
        return {index: next(leaves) for index in places}

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any], need: Set[int]) -> Values:
        """Run as far as needed and return the values of the nodes in ``need``; no other is kept."""
        wanted = set(need)
        read = {self.memory[index] for index in need}
        for index in range(max(need, default=-1), -1, -1):
            if Call(self.nodes[index]).in_place and self.memory[index] in read:
                wanted.add(index)  # nobody need read what it gives, but what it has written
            if index in wanted:
                inputs = self.inputs_of(index)
                wanted |= inputs
                read |= {self.memory[at] for at in inputs}
        last = {at: index for index in sorted(wanted) for at in self.inputs_of(index)}
        values = self.given(args, kwargs)
        for index in sorted(wanted):
            if self.nodes[index].op != "placeholder":
                values[index] = self.run(index, values)
            for at in self.inputs_of(index) - need:
                if last[at] == index:
                    values.pop(at, None)
        return {index: values.get(index, self.fixed.get(index)) for index in need}

    def seen(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Set[fx.Node]
    ) -> dict[fx.Node, Tensor]:
        """Run as far as needed and return the values of some nodes."""
        found = self.values(args, kwargs, {self.at[node] for node in wanted})
        return {self.nodes[index]: value for index, value in found.items()}

    def run(self, index: int, values: Values, instead: Values | None = None) -> Any:
        """Run one node on ``values``, those in ``instead`` taking the place of others."""
        node, replaced = self.nodes[index], instead or {}

        def value(used: fx.Node) -> Any:
            at = self.at[used]
            return replaced.get(at, values.get(at, self.fixed.get(at)))

        if node.op == "get_attr":
            return getattr(self.captured.graph_module, str(node.target))
        if node.op == "output":
            return fx.map_arg(node.args[0], value)
        return None if Call(node).checks else Call(node).run(value)

    def rebuilt(self, flat: list[Any]) -> Any:
        """Return the outputs as the model gives them."""
        return _pytree.tree_unflatten(flat, self.captured.out_spec)


def _shared(node: fx.Node) -> fx.Node | None:
    """Return the operand whose memory a node's result may be, if any."""
    first = next(iter(node.all_input_nodes), None)
    if node.target is operator.getitem:
        return first
    schema = Call(node).schema
    if schema is None or not any(part.alias_info for part in schema.returns):
        return None
    return first
