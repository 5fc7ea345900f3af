"""Run a captured graph with a model's own tensors and look at the activations inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree

from secateur.structure.capture import tensor_of
from secateur.structure.units import Structure


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
        captured = self.structure.captured
        given = iter(_pytree.tree_leaves((args, kwargs)))
        inputs = []
        for node in captured.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in captured.tensors:
                inputs.append(tensor_of(self.model, captured.tensors[node.name]))
            elif node.name in captured.constants:
                inputs.append(captured.constants[node.name])
            else:
                inputs.append(next(given))
        return self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        if "_assert_tensor_metadata" in str(n.target):
            return None
        result = super().run_node(n)
        if n in self.wanted:
            self.look(n, result)
        return result
