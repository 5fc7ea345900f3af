"""Chains: modules of one class, one after the other, each fed by the one before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from secateur.graph.calls import Call
from secateur.graph.capture import module_of
from secateur.structure.units import Structure


@dataclass(frozen=True)
class Chain:
    """Modules of one class, of which each reads what the one before puts out.

    ``blocks``: their paths, in running order. ``beside``: the nodes of the graph that they read too, which
    all come before the first (a mask, positions, what an encoder gave).
    """

    blocks: tuple[str, ...]
    beside: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.blocks)


def find_chains(structure: Structure) -> tuple[Chain, ...]:
    """Return the chains of a traced network, in running order, longest runs of at least two blocks.

    A block is a child of a ModuleList or a Sequential that runs once. What it computes is read by the next
    block alone: where a block hands anything to all that follow (T5's first one, a bias of positions), the
    chain begins behind it.
    """
    inside = _nodes(structure)
    order = {node: number for number, node in enumerate(structure.captured.graph.nodes)}
    found = [
        chain for paths in _siblings(structure, inside) for chain in _runs(structure, paths, inside, order)
    ]
    return tuple(sorted(found, key=lambda chain: min(order[node] for node in inside[chain.blocks[0]])))


def _nodes(structure: Structure) -> dict[str, set[fx.Node]]:
    """Return the nodes that run inside each module, by path."""
    inside: dict[str, set[fx.Node]] = {}
    for node in structure.captured.graph.nodes:
        if node.op == "call_function" and not Call(node).checks:
            for path in Call(node).modules:
                inside.setdefault(path, set()).add(node)
    return inside


def _siblings(structure: Structure, inside: dict[str, set[fx.Node]]) -> list[list[str]]:
    """Return the paths of the children of each container that run, those of one class beside each other."""
    found: list[list[str]] = []
    for path, module in structure.model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        runs: list[list[str]] = []
        for name, _ in module.named_children():
            own = f"{path}.{name}" if path else name
            if own not in inside:
                continue
            kind = type(module_of(structure.model, own))
            if not runs or type(module_of(structure.model, runs[-1][-1])) is not kind:
                runs.append([])
            runs[-1].append(own)
        found += runs
    return found


def _runs(
    structure: Structure, paths: list[str], inside: dict[str, set[fx.Node]], order: dict[fx.Node, int]
) -> list[Chain]:
    """Return the longest runs of these blocks that are chains."""
    fixed = structure.walk.fixed
    chains: list[Chain] = []
    blocks: list[str] = []
    beside: dict[str, None] = {}
    for path in [*paths, ""]:
        own = inside.get(path, set())
        read = {node for part in own for node in part.all_input_nodes} - own - fixed
        of_chain = set().union(*(inside[block] for block in blocks)) if blocks else set()
        last = inside[blocks[-1]] if blocks else set()
        fed = bool(read & last) and not (read & of_chain) - last
        fed = fed and max(map(order.__getitem__, last)) < min(map(order.__getitem__, own))  # each runs once
        alone = all(Call(node).readers <= last | own for node in last)
        if blocks and not (path and fed and alone):
            if len(blocks) > 1:
                chains.append(Chain(tuple(blocks), tuple(beside)))
            blocks, beside, last = [], {}, set()
        blocks.append(path)
        beside |= dict.fromkeys(sorted(node.name for node in read - last))
    return chains
