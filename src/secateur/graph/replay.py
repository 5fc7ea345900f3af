"""A network run up to one layer after another: what comes before is computed once and given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.copying import fresh
from secateur.graph.compare import tensors_in
from secateur.running import call_model, failing

Seen = tuple[tuple[Any, ...], dict[str, Any], Any]
"""A call of a module: its arguments, those by name, and its output, None where it was not run."""
MEMORY = 2**31  # bytes that batches, or what modules of one network gave on them, may take


@dataclass(frozen=True)
class Flow:
    """How numbers went from module to module in one forward.

    ``begun`` and ``ended``: when by path, of the first call and of the last; ``within``: the modules around;
    ``readers``: by path the modules around each operator outside that read what it gave; ``alone``: the paths
    of modules of which one call's result is all that comes out of them.
    """

    begun: Mapping[str, int]
    ended: Mapping[str, int]
    within: Mapping[str, tuple[str, ...]]
    readers: Mapping[str, Collection[tuple[str, ...]]]
    alone: Collection[str]

    def before(self, path: str) -> dict[str, bool]:
        """Return the largest modules that have ended when the one at ``path`` is first called, and of each
        whether anything but these reads what it gave."""
        done = {own for own in self.alone if self.ended[own] < self.begun.get(path, 0)}
        largest = [own for own in done if done.isdisjoint(self.within[own])]
        return {own: any(done.isdisjoint(around) for around in self.readers[own]) for own in largest}


def flow_of(model: nn.Module, batch: Any) -> Flow:
    """Run a network, a copy of nobody else's, on a batch, and say how numbers went in it."""
    watch = _Watch()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(_forward_of(module, partial(watch.called, path, module.forward)))
        stack.enter_context(watch)
        call_model(model, fresh(batch))
    once = {path for path, number in watch.calls.items() if number == 1}
    return Flow(watch.begun, watch.ended, watch.within, watch.readers, once - watch.leaking)


def held(batches: Iterable[Any]) -> list[Any]:
    """Return batches as a list; an empty one where they take more than ``MEMORY``."""
    found: list[Any] = []
    size = 0
    for batch in batches:
        size += _bytes(batch)
        if size > MEMORY:
            return []
        found.append(batch)
    return found


class Replay:
    """Runs a network again and again on the same batches, each time up to the calls of one module.

    ``stored``: by batch, what the largest modules that were done before gave, without the values where
    nothing reads them any more, as ``keep`` keeps it; ``bytes``: what that takes. Without a ``flow``, or
    where a batch takes another way than it says, or where they take more than ``limit``, everything is
    computed each time.
    """

    def __init__(
        self,
        model: nn.Module,
        flow: Flow | None,
        *,
        limit: float | None = None,
        keep: Callable[[Tensor], Tensor] = Tensor.clone,
    ) -> None:
        self.model, self.flow, self.keep = model, flow, keep
        self.limit = MEMORY if limit is None else limit
        self.stored: dict[int, dict[str, Any]] = {}
        self.bytes: dict[int, int] = {}

    def calls(self, path: str, number: int, batch: Any, index: int, *, ended: bool) -> list[Seen]:
        """Return (args, kwargs, output) of the first calls of the module at ``path`` on the batch of this
        ``index``; ``ended``: the last one runs too, and there are outputs."""
        done = {} if self.flow is None else self.flow.before(path)
        old = self.stored.get(index, {})
        new: dict[str, Any] = {}
        times: Counter[str] = Counter()

        def given(own: str, *_: Any, **__: Any) -> Any:
            times[own] += 1
            return _given(old[own])

        def kept(own: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            times[own] += 1
            output = forward(*args, **kwargs)
            new[own] = _map(self.keep if done[own] else _hollow, output)
            return output

        with ExitStack() as stack:
            for own in old.keys() | done.keys():
                module = self.model.get_submodule(own)
                forward = partial(given, own) if own in old else partial(kept, own, module.forward)
                stack.enter_context(_forward_of(module, forward))
            seen = shown(self.model, self.model.get_submodule(path), batch, number, ended=ended)
        if self.flow is None:
            return seen
        inner = [own for own in old if own not in done]
        if any(times[own] != 1 for own in done) or any(times[own] > 1 for own in inner):
            again = bool(old)
            self.flow, self.stored = None, {}
            return self.calls(path, number, batch, index, ended=ended) if again else seen
        self.stored[index] = {
            own: new[own] if own in new else old[own] if live else _map(_hollow, old[own])
            for own, live in done.items()
        }
        self.bytes[index] = _bytes(self.stored[index])
        if sum(self.bytes.values()) > self.limit:
            self.flow, self.stored = None, {}
        return seen

    def finished(self, batch: Any, index: int) -> Any:
        """Return what the network puts out, of which what came before the module last asked for is not run
        again."""
        with ExitStack() as stack:
            for own, output in self.stored.get(index, {}).items():
                module = self.model.get_submodule(own)
                stack.enter_context(_forward_of(module, partial(_given, output)))
            with failing(self.model, batch, "a batch of data="):
                return call_model(self.model, fresh(batch))


def _given(output: Any, *_: Any, **__: Any) -> Any:
    return _map(Tensor.clone, output)  # what follows may change it in place


class _Enough(BaseException):
    """Ends a forward that has shown what was wanted; no ``except Exception`` in it is in the way."""


def shown(model: nn.Module, module: nn.Module, batch: Any, number: int, *, ended: bool) -> list[Seen]:
    """Return (args, kwargs, output) of the first ``number`` calls of a module in one forward, which ends
    there; without the last one's output unless it has to have ``ended``."""
    seen: list[Seen] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        seen.append(_map(Tensor.clone, (args, kwargs, output)))  # what follows may change it in place
        if len(seen) == number:
            raise _Enough

    register: Any = module.register_forward_hook if ended else module.register_forward_pre_hook
    with register(hook, with_kwargs=True), suppress(_Enough), failing(model, batch, "a batch of data="):
        call_model(model, fresh(batch))
    return seen


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put another forward in the place of a module's own, under the hooks that are on it."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return _pytree.tree_map_only(Tensor, function, value)


def _hollow(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that takes no memory."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _bytes(value: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors_in(value))


@dataclass
class _Memory:
    """Where a tensor's memory comes from: the modules around the operator that made it, and which of the
    modules that ended since gave it back."""

    made_in: tuple[str, ...]
    given_by: set[str] = field(default_factory=set)


class _Watch(TorchDispatchMode):
    """Follows memory from the operator that makes it to those that read it."""

    def __init__(self) -> None:
        super().__init__()
        self.running: tuple[str, ...] = ()
        self.time = 0
        self.calls: Counter[str] = Counter()
        self.begun: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.within: dict[str, tuple[str, ...]] = {}
        self.readers: dict[str, set[tuple[str, ...]]] = {}
        self.leaking: set[str] = set()
        self.memory: dict[int, _Memory] = {}

    def called(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a module's forward."""
        self.calls[path] += 1
        self.time += 1
        self.begun.setdefault(path, self.time)
        self.within.setdefault(path, self.running)
        self.readers.setdefault(path, set())
        around, self.running = self.running, (*self.running, path)
        try:
            output = forward(*args, **kwargs)
        finally:
            self.running = around
        self.time += 1
        self.ended[path] = self.time
        for tensor in _pytree.tree_leaves(output):
            if isinstance(tensor, Tensor):  # inside other objects it could not be given back
                self.memory.setdefault(_key(tensor), _Memory(around)).given_by.add(path)
        return output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A constant comes from no operator: its memory may have been another tensor's, long gone.
        fresh_constant = func is torch.ops.aten.lift_fresh.default
        read = set() if fresh_constant else {_key(leaf) for leaf in tensors_in((args, kwargs))}
        for key in read & self.memory.keys():
            memory = self.memory[key]
            ended = [path for path in memory.made_in if path not in self.running]
            self.leaking.update(path for path in ended if path not in memory.given_by)
            for path in memory.given_by.difference(self.running):
                self.readers[path].add(self.running)
        result = func(*args, **(kwargs or {}))
        written = getattr(func, "_schema", None) is None or func._schema.is_mutable
        for key in map(_key, tensors_in(result)):
            if key not in read:
                self.memory[key] = _Memory(self.running)
            elif written:
                memory = self.memory.get(key, _Memory(()))
                self.leaking.update(path for path in self.running if path not in memory.made_in)
                self.leaking.update(memory.given_by.difference(memory.made_in))
        return result


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
