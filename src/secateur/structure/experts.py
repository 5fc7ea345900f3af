"""Mixtures of experts: where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.copying import copied
from secateur.graph.names import unwrapped
from secateur.running import arguments, forward_once

_CHOOSING = ("topk", "max", "argmax", "sort", "argsort")
_LARGEST_ROUTER = 1 << 24  # entries; a head over a vocabulary is no router


@dataclass(frozen=True)
class Mixture:
    """One mixture of experts of a network.

    ``path``: the module around its router and its experts. ``experts``: how many there are. ``router``: the
    parameter (experts, inputs) that scores them. ``scores``: what else of the router has an entry for each.
    ``stacks``: the parameters whose first dim runs over experts. ``lists``: containers of a module for each.
    """

    path: str
    experts: int
    router: str
    scores: tuple[str, ...]
    stacks: tuple[str, ...]
    lists: tuple[str, ...]


def find_experts(
    model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None
) -> dict[str, Mixture]:
    """Return the mixtures of experts of a network by the path of the module around each.

    A mixture is the smallest module that holds experts, stacked in tensors of three dims or one module each
    in a list, and a matrix with as many rows, the router, and that chooses the largest of as many numbers
    when a copy of the network runs on the example.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        kwargs: arguments by name beside ``example_inputs``.

    Returns:
        By path a ``Mixture``: ``experts``, how many there are, and the names of its tensors.

    Example:
        >>> import torch, secateur as sc
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate = torch.nn.Linear(4, 3, bias=False)
        ...         self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        ...
        ...     def forward(self, x):
        ...         weight, chosen = self.gate(x).softmax(-1).max(-1)
        ...         every = torch.stack([expert(x) for expert in self.experts], 1)
        ...         return every[torch.arange(len(x)), chosen] * weight[:, None]
        >>> sc.find_experts(Mixture(), torch.randn(8, 4))[""].experts
        3
    """
    model = unwrapped(model)
    args, named = arguments(example_inputs, kwargs)
    found: dict[str, Mixture] = {}
    for path, module in reversed(list(model.named_modules())):  # what is inside comes before what is around
        prefix = f"{path}." if path else ""
        if any(inner.startswith(prefix) for inner in found):
            continue
        mixture = _mixture(path, module)
        if mixture is not None:
            found[path] = mixture
    work = copied(model)
    with _Chooses(work, found) as mode:
        forward_once(work, args, kwargs=named)
    return {path: mixture for path, mixture in reversed(found.items()) if path in mode.seen}


def _mixture(path: str, module: nn.Module) -> Mixture | None:
    prefix = f"{path}." if path else ""
    tensors = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    counts = dict.fromkeys(len(p) for p in tensors.values() if p.dim() == 3)
    counts |= dict.fromkeys(len(own) for _, own in _lists(module))
    for number in counts:
        lists = [name for name, own in _lists(module) if len(own) == number]
        stacked = {
            name.rpartition(".")[0] for name, p in tensors.items() if p.dim() == 3 and len(p) == number
        }
        stacks = [
            n
            for n, p in tensors.items()
            if n.rpartition(".")[0] in stacked and p.dim() > 1 and len(p) == number
        ]
        if stacks:
            lists = []
        inside = tuple(f"{name}." for name in lists)
        routers = [
            name
            for name, p in tensors.items()
            if p.dim() == 2 and len(p) == number and p.numel() <= _LARGEST_ROUTER
            and name not in stacks and not name.startswith(inside)
        ]  # fmt: skip
        if number < 2 or len(routers) != 1 or not (stacks or lists):
            continue
        home = routers[0].rpartition(".")[0]
        scores = [
            name
            for name, t in (tensors | buffers).items()
            if t.dim() == 1
            and len(t) == number
            and name.rpartition(".")[0] in (home, home.rpartition(".")[0])
        ]
        return Mixture(
            path, number, f"{prefix}{routers[0]}", tuple(f"{prefix}{name}" for name in scores),
            tuple(f"{prefix}{name}" for name in stacks), tuple(f"{prefix}{name}" for name in lists),
        )  # fmt: skip
    return None


def _lists(module: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield the containers of at least two modules of one class and of the same shapes, by path."""
    for name, own in module.named_modules():
        children = list(own.children())
        if isinstance(own, (nn.ModuleList, nn.ModuleDict)) and len(children) > 1:
            shapes = {tuple(tuple(p.shape) for p in child.parameters()) for child in children}
            if len({type(child) for child in children}) == 1 and len(shapes) == 1 and shapes != {()}:
                yield name, children


class _Chooses(TorchFunctionMode):
    """Notes in which of some mixtures the largest of as many numbers as there are experts are chosen."""

    def __init__(self, work: nn.Module, mixtures: Mapping[str, Mixture]) -> None:
        super().__init__()
        self.mixtures = mixtures
        self.running: list[str] = []
        self.seen: set[str] = set()
        for path in mixtures:
            module: Any = work.get_submodule(path)
            module.register_forward_pre_hook(lambda *_, path=path: self.running.append(path))
            module.register_forward_hook(lambda *_: self.running.pop() and None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if self.running and getattr(func, "__name__", "") in _CHOOSING:
            given = args[0] if args else named.get("input")
            path = self.running[-1]
            if isinstance(given, Tensor) and given.dim() and given.shape[-1] == self.mixtures[path].experts:
                self.seen.add(path)
        return func(*args, **named)
