"""Mixtures of experts: where they are, and taking experts out, equal to a router that never chooses them.

A zero in a router's weights is a score like any other. The network that a removal must equal is the one whose
scores of those experts are minus infinity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.copying import copied
from secateur.errors import ModelError
from secateur.graph.capture import first_names, tensor_of
from secateur.graph.compare import TOLERANCE, difference, hollow
from secateur.graph.draws import randomise, rescale
from secateur.graph.names import unwrapped
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.numeric import is_whole
from secateur.running import arguments, forward_once
from secateur.structure.attributes import Change, adjust, settings_of
from secateur.structure.proof import Proof
from secateur.structure.runs import Run, Wide, runs_of, why_not, widest
from secateur.structure.surgery import Removed, cut
from secateur.text import nearest

_CHOOSING = ("topk", "max", "argmax", "sort", "argsort")
_PRODUCTS = ("linear", "matmul", "mm", "addmm", "__matmul__")
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


def remove_experts(
    model: nn.Module,
    example_inputs: Any,
    experts: Mapping[str, Sequence[int]],
    *,
    kwargs: Mapping[str, Any] | None = None,
    examples: Sequence[Any] = (),
) -> tuple[nn.Module, Proof]:
    """Return a network without some experts, proved equal to this one with their scores at minus infinity.

    The rows of the router, what else it holds of each expert (a correction bias), the stacks and lists go,
    and what says their number follows. The given network never changes.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        experts: by path of a mixture, as ``find_experts`` gives it, the numbers of the experts that go.
        kwargs: arguments by name beside ``example_inputs``.
        examples: more inputs, each as ``example_inputs``, that are compared too.

    Returns:
        A new model of the same class, and a ``Proof``.

    Raises:
        ModelError: for paths or numbers that there are not, where fewer experts would be left than the router
            chooses, or where the small network is not equal.

    Source:
        Lasby et al., "REAP the Experts", 2025, for removal instead of merging.

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
        >>> small, proof = sc.remove_experts(Mixture(), torch.randn(8, 4), {"": [1]})
        >>> len(small.experts), tuple(small.gate.weight.shape)
        (2, (2, 4))
    """
    model = unwrapped(model)
    runs = runs_of(model, example_inputs, kwargs, examples)
    chosen = _chosen(model, runs[0], experts)
    return _removed(model, runs, chosen)


@torch.no_grad()
def _removed(
    model: nn.Module, runs: list[Run], chosen: list[tuple[Mixture, np.ndarray]]
) -> tuple[nn.Module, Proof]:
    runs = [*runs, runs[0].redrawn(torch.Generator().manual_seed(0))]
    dtype = widest(model, runs[0])
    masked = copied(model).eval()
    wanted = _silenced(masked, runs, chosen, dtype)
    if hollow(wanted[0]):
        raise ModelError(f"{type(model).__name__} puts out nothing but NaN without these experts")
    small = _cut(copied(model).eval(), chosen)
    named = _named(small, chosen)
    for change in named:
        change.apply(small)
    work = copied(small, shared=small.parameters())
    changes, attempt = adjust(
        work,
        {path: {m.experts: {m.experts - len(gone)}} for m, gone in chosen for path in _around(small, m.path)},
        lambda: [run.computed_in(dtype, work) for run in runs],
        lambda outputs: difference(wanted, outputs) <= TOLERANCE[dtype],
        lambda: Wide(dtype),
    )
    where = f" in {attempt.stack[-1]}" if attempt.stack and attempt.stack[-1] else ""
    if attempt.error is not None:
        raise ModelError(
            f"{type(model).__name__} does not run without these experts: {why_not(attempt.error)}{where}; do "
            "as many stay as the router chooses, the same number in every group of experts?"
        ) from attempt.error
    for change in changes:
        change.apply(small)
    error = difference(wanted, attempt.outputs)
    if error > TOLERANCE[dtype]:
        raise ModelError(
            f"{type(model).__name__} without these experts is not equal to the one that never chooses them "
            f"(relative error {error:.1e})"
        )
    randomise(masked)
    rescale(masked)
    others = _silenced(masked, runs, chosen, dtype)
    again = _cut(masked, chosen)
    for change in (*named, *changes):
        change.apply(again)
    randomised = difference(others, [run.computed_in(dtype, again) for run in runs])
    if randomised > TOLERANCE[dtype]:
        raise ModelError(
            f"{type(model).__name__} without these experts is equal on these weights and not on others "
            f"(relative error {randomised:.1e})"
        )
    small.train(model.training)
    first = runs[0]
    return small, Proof(
        inputs=len(runs),
        dtype=str(dtype).removeprefix("torch."),
        max_error=error,
        max_error_randomised=randomised,
        removed={f"experts of {m.path}": (len(gone), m.experts) for m, gone in chosen},
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(
            count_macs(model, first.args, first.kwargs).dense,
            count_macs(small, first.args, first.kwargs).dense,
        ),
        changed=tuple(map(str, (*named, *changes))),
        notes=("equal to the network whose scores of the experts that went are minus infinity",),
    )


# -- what is a mixture -------------------------------------------------------------------------------------


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


def _chosen(model: nn.Module, run: Run, experts: Any) -> list[tuple[Mixture, np.ndarray]]:
    found = find_experts(model, run.args, kwargs=run.kwargs)
    if not isinstance(experts, Mapping) or not experts:
        raise ModelError(f"experts is {experts!r}; it is a dict of the experts that go by path of a mixture")
    chosen = []
    for path, numbers in experts.items():
        if path not in found:
            near = nearest(str(path), found)
            raise ModelError(f"{type(model).__name__} has no mixture of experts {path!r}{near}")
        number = found[path].experts
        every: Any = list(numbers) if isinstance(numbers, (Sequence, np.ndarray)) else [None]
        if not all(is_whole(n) and 0 <= n < number for n in every) or len({*every}) == number:
            raise ModelError(
                f"experts of {path!r}: {numbers!r}; they are counted from 0 to {number - 1}, and some stay"
            )
        if every:
            chosen.append((found[path], np.unique(np.array(every, dtype=np.int64))))
    return chosen


def _around(model: nn.Module, path: str) -> Iterator[str]:
    """Yield the paths of a module, of what is inside it, and of the network itself."""
    yield ""
    for name, _ in model.named_modules():
        if name == path or name.startswith(f"{path}." if path else ""):
            yield name


# -- the network without them, and what it must equal ------------------------------------------------------


def _cut(work: nn.Module, chosen: list[tuple[Mixture, np.ndarray]]) -> nn.Module:
    """Take the experts out of a copy, in place."""
    first, removed = first_names(work), Removed()
    for mixture, gone in chosen:
        for name in (mixture.router, *mixture.scores, *mixture.stacks):
            removed[first[name], 0] = gone
    cut(work, removed)
    for mixture, gone in chosen:
        for path in mixture.lists:
            own = work.get_submodule(path)
            kept = [pair for n, pair in enumerate(own._modules.items()) if n not in gone]
            own._modules.clear()
            for n, (name, child) in enumerate(kept):
                own._modules[name if isinstance(own, nn.ModuleDict) else str(n)] = child  # type: ignore[assignment]
    return work


def _named(small: nn.Module, chosen: list[tuple[Mixture, np.ndarray]]) -> list[Change]:
    """Return the changes of what is called a number of experts, in the mixtures and in configurations."""
    changes: dict[tuple[int, str], Change] = {}
    for mixture, gone in chosen:
        left = mixture.experts - len(gone)
        for path in _around(small, mixture.path):
            module = small.get_submodule(path)
            holders = [(None, module), *settings_of(module)]
            for inner, holder in holders:
                for name, value in vars(holder).items():
                    if type(value) is int and value == mixture.experts and "expert" in name:
                        changes.setdefault((id(holder), name), Change(path, inner, name, value, left))
    return list(changes.values())


def _silenced(
    masked: nn.Module, runs: list[Run], chosen: list[tuple[Mixture, np.ndarray]], dtype: torch.dtype
) -> list[Any]:
    """Return what a network gives whose scores of the experts that go are minus infinity."""
    work = copied(masked)
    routers: list[tuple[Tensor, Tensor]] = []
    for mixture, gone in chosen:
        index = torch.from_numpy(gone)
        router = tensor_of(work, first_names(work)[mixture.router])
        routers.append((router.detach().clone(), index.to(router.device)))
        for name in mixture.scores:
            tensor_of(work, first_names(work)[name])[index] = -torch.inf
    with _Silenced(routers) as mode:
        outputs = [run.computed_in(dtype, work) for run in runs]
    if len(mode.seen) < len(routers):
        raise ModelError(
            f"{type(masked).__name__}: no product with a router was seen, so its scores could not be masked"
        )
    return outputs


class _Silenced(TorchFunctionMode):
    """Puts minus infinity where a router's product scores the experts that go."""

    def __init__(self, routers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.routers = routers
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _PRODUCTS and isinstance(result, Tensor):
            for number, (router, gone) in enumerate(self.routers):
                if any(_is(weight, router) for weight in (*args, *(kwargs or {}).values())):
                    self.seen.add(number)
                    result = result.index_fill(-1, gone, -torch.inf)
        return result


def _is(value: Any, router: Tensor) -> bool:
    """Whether a tensor holds a router's numbers, in whatever dtype, turned or not."""
    if not isinstance(value, Tensor) or value.dim() != 2 or not value.is_floating_point():
        return False
    if value.shape == router.shape and torch.equal(value.to(router.dtype), router):
        return True
    return value.shape == router.T.shape and torch.equal(value.T.to(router.dtype), router)
