"""Whole blocks of a chain: how much each changes what passes through it, and a network without some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied, fresh
from secateur.errors import ModelError
from secateur.graph.compare import TOLERANCE, difference, tensors_in
from secateur.graph.draws import randomise, rescale
from secateur.graph.names import unwrapped
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.pruning.batches import Batches, batches
from secateur.pruning.ranks import together
from secateur.running import as_written, call_model, failing
from secateur.structure.attributes import Change, settings_of
from secateur.structure.proof import Proof
from secateur.structure.runs import outputs_of, runs_of, why_not, widest
from secateur.text import nearest

_LISTS = (nn.ModuleList, nn.Sequential)
_NUMBERS = ("idx", "index", "_id")  # how attributes end that say which layer a module belongs to


@torch.no_grad()
def block_influence(model: nn.Module, data: Batches) -> dict[str, float]:
    """Return how much each block of a network changes what passes through it: 1 - mean cos(x in, x out).

    Blocks are modules of one class in one list, each called with what the one before gave; the outermost
    such lists count. The cosine is taken over channels, its mean over all tokens, or positions.

    Args:
        model: the network, of which a copy runs.
        data: batches of inputs or (inputs, labels).

    Returns:
        By path of a block a number from 0 to 2, in the order in which they stand.

    Raises:
        ModelError: for a network without such a chain.
        CriterionError: for data without a batch.

    Source:
        Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
        >>> net[0].weight.data = 3 * torch.eye(2)  # longer, in the same direction
        >>> net[1].weight.data = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a quarter of a turn
        >>> {path: round(found, 6) for path, found in sc.block_influence(net, [torch.rand(4, 2)]).items()}
        {'0': 0.0, '1': 1.0}
    """
    model = unwrapped(model)
    with together(model) as peers:
        work = copied(model).eval()
        chains = [_Chain(paths) for paths in _lists(work)]
        for chain in chains:
            chain.watch(work)
        for inputs, _ in batches(data, "block_influence", work, empty=peers.number > 1):
            with as_written(), failing(work, inputs, "a batch of data="):
                call_model(work, fresh(inputs))
        told = peers.gather([(chain.fed, chain.sums) for chain in chains])
    found: dict[str, float] = {}
    for number, chain in enumerate(chains):
        fed = all(one[number][0] for one in told)
        for path in chain.paths if fed else ():
            parts = [one[number][1][path] for one in told if path in one[number][1]]
            if parts:
                found[path] = 1 - sum(total for total, _ in parts) / sum(count for _, count in parts)
    if not found:
        raise ModelError(f"{type(model).__name__} has no chain of blocks, each fed by the one before")
    return found


@dataclass
class _Chain:
    """Blocks of one list; ``fed``: each was called with what the one before gave; ``sums`` of cosines, and of
    how many."""

    paths: list[str]
    fed: bool = True
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    given: Tensor | None = None
    last: Tensor | None = None

    def watch(self, work: nn.Module) -> None:
        for number, path in enumerate(self.paths):
            module: Any = work.get_submodule(path)
            before = self._first if number == 0 else self._next
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(lambda _, args, output, path=path: self._ended(path, output))

    def _first(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.given = tensors_in((args, kwargs))[0].clone()  # a forward may change what it is called with

    def _next(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        own = tensors_in((args, kwargs))[0]
        same = (
            self.last is not None and own.shape == self.last.shape and own.data_ptr() == self.last.data_ptr()
        )
        self.fed = self.fed and same
        self._first(module, args, kwargs)

    def _ended(self, path: str, output: Any) -> None:
        before, self.last = self.given, next(iter(tensors_in(output)), None)
        if before is None or self.last is None or before.shape != self.last.shape or before.dim() < 2:
            return
        channels = 1 if before.dim() > 3 else -1
        cosines = nn.functional.cosine_similarity(before.double(), self.last.double(), dim=channels)
        total, count = self.sums.get(path, (0.0, 0))
        self.sums[path] = total + float(cosines.sum()), count + cosines.numel()


def _lists(model: nn.Module) -> Iterator[list[str]]:
    """Yield the paths of the children of each outermost list of at least two modules of one class."""
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, _LISTS) or any(path.startswith(f"{other}.") for other in found):
            continue
        children = dict(module.named_children())
        if len(children) > 1 and len({type(child) for child in children.values()}) == 1:
            found.append(path)
            yield [f"{path}.{name}" if path else name for name in children]


def drop_blocks(
    model: nn.Module,
    example_inputs: Any,
    blocks: Sequence[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Proof]:
    """Return a network without some blocks of its lists, proved equal to this one with them passed by.

    Those behind take their numbers, also where modules say which layer they are, and what a configuration
    says of layers follows. The given network never changes.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        blocks: paths of blocks, as ``block_influence`` names them; some of each list stay.
        kwargs: arguments by name beside ``example_inputs``.

    Returns:
        A new model of the same class, and a ``Proof``.

    Raises:
        ModelError: for what is no block of a list, or a network that does more with them than pass its first
            tensor on.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> small, proof = sc.drop_blocks(net, torch.randn(2, 4), ["1"])
        >>> len(small), proof.parameters
        (2, (60, 40))
    """
    model = unwrapped(model)
    chosen = _chosen(model, blocks)
    run = runs_of(model, example_inputs, kwargs)[0]
    dtype = widest(model, run)
    small, changes = _cut(copied(model).eval(), chosen)
    errors: list[float] = []
    masked = copied(model).eval()
    for seed in (None, 0):
        if seed is not None:
            randomise(masked, seed)
            rescale(masked)
        cut = small if seed is None else _cut(copied(masked), chosen)[0]
        try:
            wanted, given = (outputs_of([run], network, dtype) for network in (_passing(masked, blocks), cut))
        except Exception as error:  # whatever a forward raises without what its blocks gave beside
            raise ModelError(
                f"{type(model).__name__} does not run without these blocks: {why_not(error)}; do they give "
                "anything but what they pass on?"
            ) from error
        errors.append(difference(wanted, given))
        if errors[-1] > TOLERANCE[dtype]:
            raise ModelError(
                f"{type(model).__name__} without these blocks is not equal to the one that passes them by "
                f"(relative error {errors[-1]:.1e})"
            )
    small.train(model.training)
    return small, Proof(
        inputs=1,
        dtype=str(dtype).removeprefix("torch."),
        max_error=errors[0],
        max_error_randomised=errors[1],
        removed={f"blocks of {path}": (len(gone), gone.of) for path, gone in chosen.items()},
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(count_macs(model, run.args, run.kwargs).dense, count_macs(small, run.args, run.kwargs).dense),
        changed=tuple(map(str, changes)),
        notes=("equal to the network in which what goes into these blocks comes out of them",),
    )


@dataclass(frozen=True)
class _Gone:
    """The numbers of the blocks of one list that go, of so many."""

    numbers: tuple[int, ...]
    of: int

    def __contains__(self, number: int) -> bool:
        return number in self.numbers

    def __len__(self) -> int:
        return len(self.numbers)


def _chosen(model: nn.Module, blocks: Sequence[str]) -> dict[str, _Gone]:
    modules, found = dict(model.named_modules()), dict[str, _Gone]()
    if isinstance(blocks, str) or not blocks:
        raise ModelError(f"blocks is {blocks!r}; it is a list of paths, and names some")
    for path in dict.fromkeys(blocks):
        place, _, name = path.rpartition(".")
        around = modules.get(place)
        if path not in modules or not isinstance(around, _LISTS):
            near = nearest(path, modules)
            raise ModelError(f"{type(model).__name__} has no block {path!r} in a list{near}")
        before = found.get(place, _Gone((), len(around)))
        found[place] = _Gone((*before.numbers, list(around._modules).index(name)), before.of)
    for place, gone in found.items():
        if len(gone) == gone.of:
            raise ModelError(f"{place!r}: all {gone.of} blocks would go; some stay")
    return found


def _cut(work: nn.Module, chosen: Mapping[str, _Gone]) -> tuple[nn.Module, list[Change]]:
    """Take blocks out of a copy, in place, and return what attributes follow."""
    changes: list[Change] = []
    for place, gone in chosen.items():
        own = work.get_submodule(place)
        kept = [(n, child) for n, child in enumerate(own.children()) if n not in gone]
        own._modules.clear()
        for new, (old, child) in enumerate(kept):
            own._modules[str(new)] = child
            for path, module in child.named_modules(prefix=f"{place}.{new}".lstrip(".")):
                changes += [
                    Change(path, None, name, old, new)
                    for name, value in vars(module).items()
                    if type(value) is int and value == old != new and name.endswith(_NUMBERS)
                ]
        changes += _of_settings(work, gone)
    for change in changes:
        change.apply(work)
    return work, changes


def _of_settings(work: nn.Module, gone: _Gone) -> list[Change]:
    """Return the changes of what configurations say of as many layers: a number, lists of one for each."""
    changes: dict[tuple[int, str], Change] = {}
    for path, module in work.named_modules():
        for inner, holder in settings_of(module):
            for name, value in vars(holder).items():
                if "layer" not in name or (id(holder), name) in changes:
                    continue
                new: Any = None
                if type(value) is int and value == gone.of:
                    new = value - len(gone)
                elif isinstance(value, (list, tuple)) and len(value) == gone.of:
                    new = type(value)(part for n, part in enumerate(value) if n not in gone)
                if new is not None:
                    changes[id(holder), name] = Change(path, inner, name, value, new)
    return list(changes.values())


def _passing(model: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """Return a copy of a network in which some blocks give what they are given."""
    work = copied(model)
    given: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(tensors_in((args, kwargs))[0].clone())

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        own = given.pop()
        return own if isinstance(output, Tensor) else type(output)((own, *output[1:]))

    for path in blocks:
        module: Any = work.get_submodule(path)
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    return work
