"""Run a captured graph with a model's own tensors and look at the activations inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree

from secateur.graph.capture import Captured, tensor_of
from secateur.structure.units import Structure


def bound(
    captured: Captured, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[fx.Node, Any]:
    """Return by placeholder what it stands for: a model's own tensors, and arguments like the example's."""
    given = iter(_pytree.tree_leaves((args, kwargs)))
    found: dict[fx.Node, Any] = {}
    for node in captured.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in captured.tensors:
            found[node] = tensor_of(model, captured.tensors[node.name])
        elif node.name in captured.constants:
            found[node] = captured.constants[node.name]
        else:
            found[node] = next(given)
    return found


class Watcher(fx.Interpreter):
    """Runs the graph of a structure and shows ``look`` the value of each node in ``wanted``."""

    def __init__(
        self,
        structure: Structure,
        model: nn.Module,
        wanted: set[fx.Node],
        look: Callable[[fx.Node, Tensor], None],
    ) -> None:
        super().__init__(structure.captured.program.graph_module)
        self.structure, self.model, self.wanted, self.look = structure, model, wanted, look

    def run_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run on arguments like the example inputs."""
        return self.run(*bound(self.structure.captured, self.model, args, kwargs).values())

    def run_node(self, n: fx.Node) -> Any:
        if "_assert_tensor_metadata" in str(n.target):
            return None
        result = super().run_node(n)
        if n in self.wanted:
            self.look(n, result)
        return result
