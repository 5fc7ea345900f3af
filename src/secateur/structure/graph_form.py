"""The small network as a graph: the captured forward with the sizes that stand in it made smaller.

A Python forward may have a size written into it that no attribute explains; its graph has none that is not
known by its labels. So what cannot be cut out of the modules can be cut out of the graph.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export._unlift import _get_codegen
from torch.utils import _pytree

from secateur.errors import ModelError
from secateur.graph.capture import (
    Captured,
    all_tensors,
    capture,
    capture_any_batch,
    first_names,
)
from secateur.graph.run import Bound
from secateur.structure.graph_patches import CONSTANTS, Patching
from secateur.structure.labels import Array, Classes
from secateur.structure.propagate import Walk
from secateur.structure.rules.table import apply
from secateur.structure.surgery import Removed, classes_removed, sliced
from secateur.structure.units import HEADS, Structure

MADE_HERE = "secateur_form"
_KEPT = "graph form"  # in a structure's own namespace


@dataclass(frozen=True)
class GraphForm:
    """What graphs of a network's smaller versions are made of: its graph, for batches of any size where it
    takes them, with the labels of every node. ``note`` says what the graph is bound to."""

    model: nn.Module
    captured: Captured
    walk: Walk
    classes: tuple[Classes, ...]
    note: str

    def cut(self, work: nn.Module, removed: Removed) -> fx.GraphModule:
        """Return the graph with the tensors of ``work`` (a copy of the model) less what goes."""
        patching = Patching(self.walk, *self._pruned(removed), self.once)
        graph = patching.copied(self.captured.graph, self.captured)
        signature = list(inspect.signature(self.model.forward).parameters)[: len(self.captured.args)]
        given = self.captured.args, self.captured.kwargs
        graph.set_codegen(
            _get_codegen(
                _pytree.tree_structure(given), self.captured.out_spec, [*signature, *self.captured.kwargs]
            )
        )
        first, found = first_names(work), dict[str, Tensor]()
        for name, tensor in all_tensors(work):
            if first[name] != name:
                found[name] = found[first[name]]
                continue
            new = sliced(tensor.detach(), name, removed).clone()
            parameter = isinstance(tensor, nn.Parameter)
            found[name] = nn.Parameter(new, tensor.requires_grad) if parameter else new
        found |= patching.constants | self._computed(work, patching)
        return assembled(found, graph, type(self.model).__name__)

    @cached_property
    def once(self) -> dict[fx.Node, str]:
        """The nodes at which weights are done that statistics of others make, and the name of each:
        the parameter's that it is made of, where no one else reads that."""
        measured = [n for n in self.captured.graph.nodes if n in self.walk.measured]
        reached = set(measured)
        for node in self.captured.graph.nodes:
            if node in self.walk.fixed and not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        ends = [n for n in reached if any(u not in self.walk.fixed for u in n.users)]
        names: dict[fx.Node, str] = {}
        for node in ends:
            above, left = set(), [node]
            while left:
                one = left.pop()
                if one not in above:
                    above.add(one)
                    left += one.all_input_nodes
            shape = tuple(node.meta["val"].shape)
            own = [self.walk.named[n] for n in above if n in self.walk.named and set(n.users) <= above]
            alike = [n for n in own if self.captured.tensor(n).shape == shape and n not in names.values()]
            names[node] = alike[0] if alike else f"{CONSTANTS}{node.name}"
        return names

    def _computed(self, work: nn.Module, patching: Patching) -> dict[str, Tensor]:
        """Return the weights that are computed once and for all, of the parameters of ``work``."""
        if not self.once:
            return {}
        captured = self.captured
        values = Bound(captured, work).seen(captured.args, captured.kwargs, self.once.keys())
        found: dict[str, Tensor] = {}
        for node, name in self.once.items():
            made = values[node].detach().clone()
            for dim, labels in self.walk.values[node].labels():
                index = torch.from_numpy(np.flatnonzero(patching.kept(labels)))
                made = made.index_select(dim, index.to(made.device))
            found[name] = made if name.startswith(CONSTANTS) else nn.Parameter(made)
        return found

    def _pruned(self, removed: Removed) -> tuple[Classes, Array]:
        """Return the classes, heads or the positions in them, under which what goes may go, and which go."""
        for classes in self.classes:
            pruned = classes_removed(self.walk, classes, removed)
            if not (pruned & classes.frozen).any():
                return classes, pruned
        raise ModelError(
            "for batches of any size the graph of this network keeps what its own graph could lose"
        )


def graph_form(structure: Structure) -> GraphForm:
    """Return what graphs of smaller versions of a traced network are made of, once made with its structure.

    Raises ModelError where there is no program of it, or where norms over what goes would have to be mended.
    """
    kept = vars(structure)
    if _KEPT not in kept:
        kept[_KEPT] = _made(structure)
    return kept[_KEPT]


def _made(structure: Structure) -> GraphForm:
    own, name = structure.captured, type(structure.model).__name__
    if own.program is None:
        raise ModelError(
            f"form='graph' needs a graph that serves for other inputs, and {name} was analysed as it ran on "
            f"the example ({own.refused})"
        )
    names = (full for full, _ in all_tensors(structure.model))
    if taken := next((full for full in names if hasattr(fx.GraphModule, full.partition(".")[0])), None):
        raise ModelError(f"form='graph': a torch.fx.GraphModule cannot hold {taken!r}; rename that module")
    if structure.walk.streams:
        raise ModelError("form='graph' cannot mend norms over residual streams; trace without streams=True")
    try:
        captured, note = capture_any_batch(structure.model, (own.args, own.kwargs)), ""
    except ModelError as error:
        captured = capture(structure.model, own.args, own.kwargs)
        note = f"as a graph it takes inputs of the example's shapes alone ({error})"
    walk = Walk(captured, apply, graph=structure.walk.graph)
    walk.run()
    classes = tuple(walk.labels.solve(heads) for heads in HEADS)
    bound = "the graph has no training mode: norms and dropout are those of eval mode"
    once = "weights of which statistics are taken are computed once" if walk.measured else ""
    return GraphForm(structure.model, captured, walk, classes, "; ".join(filter(None, (note, bound, once))))


def assembled(tensors: dict[str, Tensor], graph: fx.Graph, name: str) -> fx.GraphModule:
    """Return a module of a graph that holds tensors under their names, read by it or not."""
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    with graph.inserting_before(next(iter(graph.nodes), None)):
        for other in tensors.keys() - read:
            graph.get_attr(other)  # copies of a GraphModule keep what its graph names
    made = fx.GraphModule(tensors, graph, class_name=name)
    made.meta[MADE_HERE] = "graph"
    return made.eval()


def is_graph_form(model: nn.Module) -> bool:
    """Whether a network is one that was made here."""
    return isinstance(model, fx.GraphModule) and model.meta.get(MADE_HERE) == "graph"
