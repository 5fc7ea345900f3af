"""Residual blocks, x + F(x): where they are, what scales F, and taking out those whose F is zero."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.copying import copied
from secateur.graph.calls import Call
from secateur.graph.capture import tensor_of
from secateur.graph.compare import difference, tensors_in
from secateur.graph.draws import randomise, redrawn
from secateur.graph.names import canonical_modules
from secateur.graph.operators import operator_of, plain
from secateur.running import call
from secateur.structure.propagate import Walk
from secateur.structure.units import Structure

aten = torch.ops.aten
_RANDOMISED = 3


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block: an addition of x and F(x), of one shape.

    ``parameters``: those of F's last layer, its scale and its shift; F(x) is proportional to them.
    ``inside``: the other weights that serve nothing but F. ``modules``: paths of the modules around the
    addition, innermost first.
    """

    name: str
    parameters: tuple[str, ...]
    inside: tuple[str, ...]
    modules: tuple[str, ...]


def find_blocks(structure: Structure) -> tuple[dict[str, ResidualBlock], dict[str, str]]:
    """Return the residual blocks by name, and why others have no scale of their own.

    A block is an addition of two tensors of one shape of which the one, F(x), is computed from the
    other, x. An addition whose shortcut is a layer too (a projection, where the width changes) is not
    one: it cannot go whole. Between F's last layer and the addition data may move (views, transposes,
    dropout), but nothing else may happen, and nobody else may read it.
    """
    walk = structure.walk
    above = _ancestors(walk)
    blocks: dict[str, ResidualBlock] = {}
    skipped: dict[str, str] = {}
    for node in walk.captured.graph.nodes:
        pair = _operands(node)
        if pair is None:
            continue
        first, second = pair
        if above[second] >> _bit(above, first) & 1:
            branch = second
        elif above[first] >> _bit(above, second) & 1:
            branch = first
        else:
            continue
        last, reason = _last(branch, node)
        name = f"x + {walk.innermost(last) or last.name}"
        while name in blocks or name in skipped:
            name += "'"
        parameters = () if reason else _scaling(walk, last)
        if isinstance(parameters, str) or reason:
            skipped[name] = reason or str(parameters)
        else:
            blocks[name] = ResidualBlock(
                name,
                parameters,
                _inside(walk, branch, node, parameters),
                tuple(path for path in Call(node).modules if path),
            )
    return blocks, skipped


@torch.no_grad()
def remove_blocks(
    model: nn.Module, blocks: Iterable[ResidualBlock], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Zero F in each of the blocks, in place, and put an ``nn.Identity`` in the place of each module
    that then gives back its one input; return the paths of these.

    Whether one does is seen by running: exactly the same numbers, on the example and another draw, with
    the weights as they are and with random ones. The smallest module around the addition that does is
    taken, and put back where the network's output changes. Where there is none, F's weights are zero.
    """
    blocks = list(blocks)
    for block in blocks:
        for name in (*block.parameters, *block.inside):
            tensor_of(model, name).zero_()
    example = args, dict(kwargs)
    draws = [example, redrawn(example, torch.Generator().manual_seed(0))]
    states = [model, *(copied(model) for _ in range(_RANDOMISED if blocks else 0))]
    for seed, state in enumerate(states[1:], 1):
        randomise(state, seed)
    replaced: list[str] = []
    for block in blocks:
        for path in block.modules:
            if any(f"{path}.".startswith(f"{other}.") for other in replaced):
                break  # gone with what is around it
            if _same(states, path, draws) and _replace(states, path, draws):
                replaced.append(path)
                break
    return [path for path in replaced if not any(path.startswith(f"{other}.") for other in replaced)]


# -- the graph ---------------------------------------------------------------------------------------


def _ancestors(walk: Walk) -> dict[fx.Node, int]:
    """Return by node a bit for itself and for each node that it is computed from."""
    above: dict[fx.Node, int] = {}
    for number, node in enumerate(walk.captured.graph.nodes):
        own = 1 << number
        for used in node.all_input_nodes:
            own |= above[used]
        above[node] = own
    return above


def _bit(above: Mapping[fx.Node, int], node: fx.Node) -> int:
    return above[node].bit_length() - 1


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two tensors of one shape that a node adds, if that is what it does."""
    if plain(Call(node).operator) is not aten.add or len(node.args) < 2:
        return None
    first, second = node.args[:2]
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
        return None
    shape = Call(first).shape
    return (first, second) if shape is not None and shape == Call(second).shape else None


def _last(branch: fx.Node, addition: fx.Node) -> tuple[fx.Node, str]:
    """Return F's last node that is not a mere move of its result, and why it cannot be scaled, if so."""
    node, reader = branch, addition
    while True:
        call = Call(node)
        if call.readers != {reader}:
            return node, "its result is read elsewhere too"
        kind, key, sources = operator_of(call).kind, plain(call.operator), call.tensors
        by_number = key in (aten.mul, aten.div) and len(sources) == 1
        if not by_number and (kind in ("affine", "norm") or key is aten.mul):
            return node, ""
        proportional = by_number or kind in ("moves", "same") or key is aten.div
        if not proportional or len(sources) != 1 or node.args[0] is not sources[0]:
            return node, f"its last operation is {call.name}, which has no scale of its own"
        node, reader = sources[0], node


def _scaling(walk: Walk, node: fx.Node) -> tuple[str, ...] | str:
    """Return the parameters that scale and shift the result of a node, or why there are none."""
    call, row = Call(node), operator_of(Call(node))
    product = plain(call.operator) is aten.mul  # by a parameter on either side
    found: list[str] = []
    for leaf in ("other", "self") if product else (row.weight, row.bias):
        value = call.arguments.get(leaf or "")
        if value is None and (leaf == row.bias or found):
            continue
        name = walk.named.get(value) if isinstance(value, fx.Node) else None
        if name is None or name in walk.captured.buffers:
            if product:
                continue
            made = "no scale" if value is None else f"a {leaf} that is no parameter, or computed from some"
            return f"its last operation, {call.name}, has {made}"
        if _readers(walk, name) != {node}:
            return f"{name}, which would scale it, is used elsewhere too"
        found.append(name)
    if not found or (product and len(found) > 1):
        return f"its last operation is {call.name}, which has no scale of its own"
    return tuple(found)


def _readers(walk: Walk, name: str) -> set[fx.Node]:
    return {user for node, own in walk.named.items() if own == name for user in Call(node).readers}


def _inside(walk: Walk, branch: fx.Node, addition: fx.Node, parameters: Collection[str]) -> tuple[str, ...]:
    """Return the weights that are read on the way to F(x) and nowhere else, but ``parameters``."""
    inside = {addition}
    for node in reversed(list(walk.captured.graph.nodes)):
        users = Call(node).readers
        if users and users <= inside and (node is branch or addition not in users):
            inside.add(node)
    # A weight under a norm of its own (weight norm) must not be zero: it is divided by its length.
    matrices = dict.fromkeys(read.weight for read in walk.reads)
    return tuple(n for n in matrices if n not in parameters and _readers(walk, n) <= inside - {addition})


# -- modules -----------------------------------------------------------------------------------------


def identity_for(module: nn.Module) -> nn.Identity:
    """Return an ``nn.Identity`` that says for which class it stands: files of models check it."""
    identity = nn.Identity().train(module.training)
    vars(identity)["replaces"] = f"{type(module).__module__}.{type(module).__qualname__}"
    return identity


def replaced_class(module: nn.Module) -> str | None:
    """Return the class for which an ``nn.Identity`` of ``identity_for`` stands; None for any other."""
    return vars(module).get("replaces") if type(module) is nn.Identity else None


def _same(states: Iterable[nn.Module], path: str, draws: Iterable[Any]) -> bool:
    """Whether the module at ``path`` runs and gives back its one input, in every state on every draw."""
    for state in states:
        for args, kwargs in draws:
            with _watched(state.get_submodule(path)) as calls:
                call(state, args, kwargs)
            if not calls or not all(calls):
                return False
    return True


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[bool]]:
    """Note of each call of a module whether it gave back what it was given."""
    calls: list[bool] = []
    given: list[Tensor | None] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alone = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
        given.append(args[0].clone() if alone else None)  # what follows may change it in place

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        value = given.pop()
        same = value is not None and isinstance(output, Tensor) and output.dtype == value.dtype
        calls.append(same and torch.equal(output, value))  # type: ignore[arg-type]

    register: Any = module.register_forward_hook
    with module.register_forward_pre_hook(before, with_kwargs=True), register(after, with_kwargs=True):
        yield calls


def _replace(states: list[nn.Module], path: str, draws: list[Any]) -> bool:
    """Replace the module at ``path`` in every state; undo it where the first one's output changes."""
    model = states[0]
    wanted = [call(model, *draw) for draw in draws]
    undo = [_swap(state, path) for state in states]
    try:
        same = all(
            bool(tensors_in(before)) and difference(before, call(model, *draw)) == 0
            for before, draw in zip(wanted, draws, strict=True)
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        same = False  # the network asks this module for more than its forward
    if not same:
        for state, old in zip(states, undo, strict=True):
            _put(state, state.get_submodule(path), old)
    return same


def _swap(model: nn.Module, path: str) -> nn.Module:
    old = model.get_submodule(path)
    _put(model, old, identity_for(old))
    return old


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in every place where another is."""
    for _, parent in list(canonical_modules(model)):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
