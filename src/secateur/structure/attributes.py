"""Sizes that a module keeps as plain attributes: find which must change, and prove it by running.

``forward`` methods read ``self.num_heads`` or ``self.split_size``. Candidates are the integer
attributes (also inside configurations) that equal a size which the graph says has changed in that
module; a set of them is taken only when the forward then gives what the masked network gives.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.structure.labels import Array
from secateur.structure.propagate import values_in
from secateur.structure.surgery import Removed, classes_removed
from secateur.structure.units import Structure

_MOST_RUNS = 150
_WHOLE = float("inf")
Sizes = dict[int, set[int]]


@dataclass(frozen=True)
class Change:
    """A new value for one attribute of the module at ``path``, or of the object ``inner`` it holds."""

    path: str
    inner: str | None
    attribute: str
    old: Any
    new: Any

    def __str__(self) -> str:
        place = ".".join(part for part in (self.path, self.inner, self.attribute) if part)
        return f"{place}: {self.old} -> {self.new}"

    @property
    def place(self) -> tuple[str, str | None, str]:
        return self.path, self.inner, self.attribute

    def holder(self, model: nn.Module) -> Any:
        module = model.get_submodule(self.path)
        return module if self.inner is None else getattr(module, self.inner)

    def apply(self, model: nn.Module) -> None:
        self.holder(model).__dict__[self.attribute] = self.new

    def undo(self, model: nn.Module) -> None:
        self.holder(model).__dict__[self.attribute] = self.old


Choice = tuple[Change, ...]


@dataclass(frozen=True)
class Attempt:
    """How far a forward came: operators run, the modules it failed in with what each was given, the error; or
    its outputs."""

    finished: int
    calls: list[tuple[str, Any, Any]]
    error: Exception | None
    outputs: Any

    @property
    def stack(self) -> list[str]:
        """The paths of the modules it failed in, innermost last."""
        return [path for path, _, _ in self.calls]


def changed_sizes(structure: Structure, removed: Removed) -> dict[str, Sizes]:
    """Return by module path the sizes that change in it, old -> new, innermost and around."""
    pruned = classes_removed(structure.walk, structure.classes, removed)
    found = sizes_by_module(structure, lambda own: int((~pruned[own]).sum()))
    for (name, dim), indices in removed.items():
        path = name.rpartition(".")[0]
        size = structure.walk.parameters[name].shape[dim]
        found.setdefault(path, {}).setdefault(size, set()).add(size - len(indices))
    return found


def sizes_by_module(structure: Structure, new: Callable[[Array], int]) -> dict[str, Sizes]:
    """Return by module path the sizes in it that ``new`` makes others, of the classes of a dim's labels."""
    found: dict[str, Sizes] = {}
    for node, value in structure.walk.values.items():
        stack = node.meta.get("nn_module_stack") or {}
        for labels in (labels for part in values_in(value) for _, labels in part.labels()):
            size = new(structure.classes.of[labels])
            for path in ["", *(path for path, _ in stack.values())] if size != len(labels) else ():
                found.setdefault(path, {}).setdefault(len(labels), set()).add(size)
    return found


def adjust(
    model: nn.Module,
    sizes: dict[str, Sizes],
    run: Callable[[], Any],
    same: Callable[[Any], bool],
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[list[Change], Attempt]:
    """Change attributes of ``model`` in place until ``run`` gives outputs that are ``same``.

    Sets of up to three attributes are tried, those near the module that failed first, each on that module
    alone (``within`` what ``run`` runs in) with the inputs that it failed on; a set that lets it come further
    is tried on the whole, kept, and the search goes on. Returns (the changes made, the last attempt); where
    no set was found, the attempt that no change of the failing module mended, and no attribute is changed.
    """
    attempt = tried(model, run)
    if attempt.error is None and same(attempt.outputs):
        return [], attempt
    options, blamed = _options(model, sizes), attempt
    chosen: list[Choice] = []
    while True:
        best: tuple[int, tuple[Choice, ...], Attempt] | None = None
        for extra in _promising(model, options, chosen, attempt, within):
            if best is not None and len(extra) > len(best[1]):
                break
            with _applied(extra, model):
                result = tried(model, run)
            if result.error is None and same(result.outputs):
                _apply(extra, model)
                return [change for choice in (*chosen, *extra) for change in choice], result
            further = result.error is None or result.finished > attempt.finished
            reach = result.finished if result.error is not None else 1 << 60
            if attempt.error is not None and further and (best is None or reach > best[0]):
                best = (reach, extra, result)
        if best is None:
            _undo(chosen, model)
            return [], blamed
        if all(_around(choice, attempt.stack[-1:], model) for choice in best[1]):
            blamed = best[2]  # what a module around it says may lead past a failure and mend nothing
        _apply(best[1], model)
        chosen += best[1]
        attempt = best[2]


def _promising(
    model: nn.Module,
    options: list[Choice],
    chosen: Sequence[Choice],
    attempt: Attempt,
    within: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[Choice, ...]]:
    """Yield the sets of changes that are worth a run of the whole, set by set with what was found before.

    Where an attempt failed: those with which a module that was running comes to its end on what it was given;
    then all that let it come further; and only then what the network itself holds, which can lead past a
    failure and mend nothing. Where nothing failed, every set.
    """
    kept: tuple[Choice, ...] = ()
    others: list[tuple[Choice, ...]] = []
    while True:
        alone = _Alone(model, attempt, within)
        best: tuple[float, tuple[Choice, ...]] | None = None
        with _applied(kept, model):
            near = _nearest(options, [*chosen, *kept], attempt, model)
        for extra in itertools.islice(_sets(near), _MOST_RUNS):
            if best is not None and len(extra) > len(best[1]):
                break
            with _applied(kept, model):
                gain = alone.gain(extra)
            if gain is None:
                others += [] if kept else [extra]
            elif gain == _WHOLE:
                yield (*kept, *extra)
            elif gain > 0 and (best is None or gain > best[0]):
                best = (gain, extra)
        if best is None:
            break
        kept = (*kept, *best[1])
    if kept:
        yield kept
    yield from others


class _Alone:
    """The modules that were running when a forward failed, each on its own: how far it comes on what it was
    given."""

    def __init__(
        self, model: nn.Module, attempt: Attempt, within: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.model, self.calls, self.within = model, attempt.calls, within
        self.reached: dict[int, int] = {}

    def gain(self, choices: tuple[Choice, ...]) -> float | None:
        """Return how many operators further these changes let the outermost module come that reads one, all
        where it comes to its end; None where only a run of the whole can say."""
        paths = [path for path, _, _ in self.calls]
        near = [i for i, path in enumerate(paths) if any(_around(c, [path], self.model) for c in choices)]
        if not near or not paths[near[0]]:
            return None  # the network itself, or nothing failed
        at = near[0]
        if at not in self.reached:
            self.reached[at], _, _ = self._run(at)
        with _applied(choices, self.model):
            finished, _, failed = self._run(at)
        return _WHOLE if failed is None else finished - self.reached[at]

    def _run(self, at: int) -> tuple[int, Any, Exception | None]:
        path, args, kwargs = self.calls[at]
        with self.within():
            return _counted(lambda: self.model.get_submodule(path)(*args, **kwargs))


def _nearest(options: list[Choice], chosen: list[Choice], attempt: Attempt, model: nn.Module) -> list[Choice]:
    """Order what may be tried: what the innermost module that failed holds, then what those around
    it hold, then, where nothing failed, everything."""
    done = {change.place for change in itertools.chain(*chosen)}
    left = [option for option in options if done.isdisjoint(change.place for change in option)]
    if attempt.error is None:
        return left
    inner = [o for o in left if _around(o, attempt.stack[-1:], model)]
    around = [o for o in left if _around(o, attempt.stack, model)]
    return inner + [o for o in around if o not in inner]


def _sets(options: list[Choice]) -> Iterator[tuple[Choice, ...]]:
    """Sets of one, two and three choices, no attribute twice in one."""
    for number in (1, 2, 3):
        for extra in itertools.combinations(options, number):
            places = {change.place for change in itertools.chain(*extra)}
            if len(places) == sum(map(len, extra)):
                yield extra


def tried(model: nn.Module, run: Callable[[], Any]) -> Attempt:
    """Run a forward and say how far it came."""
    calls: list[tuple[str, Any, Any]] = []
    hooks = []
    for path, module in model.named_modules():

        def before(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            calls.append((path, args, kwargs))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            if calls:
                calls.pop()

        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    try:
        finished, outputs, failed = _counted(run)
    finally:
        for hook in hooks:
            hook.remove()
    return Attempt(finished, calls if failed else [], failed, outputs)


@torch.no_grad()
def _counted(run: Callable[[], Any]) -> tuple[int, Any, Exception | None]:
    """Return how many operators a run came to the end of, what it gives, and what it raised."""
    counter = _Counter()
    try:
        with counter:
            outputs = run()
        return counter.number, outputs, None
    except Exception as error:  # whatever somebody's forward raises on sizes it did not expect
        return counter.number, None, error


class _Counter(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.number += 1
        return result


@contextmanager
def _applied(choices: tuple[Choice, ...], model: nn.Module) -> Iterator[None]:
    _apply(choices, model)
    try:
        yield
    finally:
        _undo(choices, model)


def _apply(choices: Sequence[Choice], model: nn.Module) -> None:
    for change in itertools.chain(*choices):
        change.apply(model)


def _undo(choices: Sequence[Choice], model: nn.Module) -> None:
    for change in itertools.chain(*reversed(choices)):
        change.undo(model)


def _options(model: nn.Module, sizes: dict[str, Sizes]) -> list[Choice]:
    """Return the changes to try: an attribute of all modules of a class and place at once (the same
    one of every layer), or of one alone."""
    found: dict[tuple[str, str, str, int], list[Change]] = {}
    seen: set[tuple[int, str]] = set()
    for path, module in model.named_modules():
        own = sizes.get(path)
        if not own:
            continue
        for inner, holder, attribute, value in _integers(module):
            if (id(holder), attribute) in seen:
                continue
            news = _replacements(value, own)
            if news:
                seen.add((id(holder), attribute))
            for which, new in enumerate(news):
                key = (type(holder).__name__, re.sub(r"\d+", "*", path), attribute, which)
                found.setdefault(key, []).append(Change(path, inner, attribute, value, new))
    alone = [(change,) for changes in found.values() for change in changes if len(changes) > 1]
    return [*(tuple(changes) for changes in found.values()), *alone]


def _integers(module: nn.Module) -> Iterator[tuple[str | None, Any, str, Any]]:
    standard = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Unflatten)
    for name, value in vars(module).items():
        if _is_sizes(value) and not standard:
            yield None, module, name, value
    for name, holder in settings_of(module):
        for key, inner in vars(holder).items():
            if _is_sizes(inner):
                yield name, holder, key, inner


def settings_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the plain objects, configurations say, that a module holds by name."""
    for name, value in vars(module).items():
        if not name.startswith("_") and _is_settings(value):
            yield name, value


def _is_sizes(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (list, tuple)):
        return (
            bool(value)
            and len(value) < 16
            and any(map(_is_sizes, value))
            and all(isinstance(v, int) for v in value)
            and type(value) in (list, tuple)
        )
    return isinstance(value, int) and value > 1


def _is_settings(value: Any) -> bool:
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, torch.Tensor, type))
        and not callable(value)
        and type(value).__module__ not in ("builtins", "torch")
    )


def _replacements(value: Any, sizes: Sizes) -> list[Any]:
    if isinstance(value, (list, tuple)):
        parts = [sorted(sizes.get(v, {v})) for v in value] if all(isinstance(v, int) for v in value) else []
        news = [type(value)(combination) for combination in itertools.islice(itertools.product(*parts), 8)]
        return [new for new in news if new != value] if parts else []
    return sorted(sizes.get(value, ()))[:4]


def _around(choice: Choice, failing: list[str], model: nn.Module) -> bool:
    """Whether a choice changes something of a module that was running when the forward failed."""
    near = {id(model.get_submodule(path)) for path in failing}
    held = {id(v) for path in failing for v in vars(model.get_submodule(path)).values()}
    return any(id(change.holder(model)) in near | held for change in choice)
