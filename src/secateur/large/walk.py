"""A network run block by block: each block on what those before it, as they are by then, put out.

Blocks are found by running the network once: the children of its lists that run once each, and of which
nothing but what they give back comes out. No table of architectures says where they are.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import _disable_current_modes

from secateur.copying import copied, fresh
from secateur.errors import ModelError
from secateur.large.mapped import Mapped
from secateur.methods.replay import Flow, Replay, flow_of
from secateur.running import call_model, failing

ACTIVATIONS = 2 << 30
"""Bytes of activations that stay in memory where nobody says."""
Named = dict[str, Any]
"""What a block is called on: its arguments by name."""


def blocks_in(model: nn.Module, flow: Flow) -> list[str]:
    """Return the paths of a network's blocks, in running order: children of one class in a list, outermost,
    of which each runs once and gives back all that comes out of it. The network itself where there are none.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or path.startswith(_within(found)):
            continue
        children = [(f"{path}.{name}", child) for name, child in module.named_children()]
        alike = len({type(child) for _, child in children}) == 1
        if len(children) > 1 and alike and all(own in flow.alone for own, _ in children):
            found += [own for own, _ in children]
    return sorted(found, key=flow.begun.__getitem__) or [""]


def _within(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{path}." for path in paths)


class Walk:
    """What a network gives on some batches, as far as it has been run; it goes on block by block.

    Between two blocks it keeps the activations alone: in memory, or in files that vanish with it where they
    take more than ``memory`` bytes. ``examples``: by block a short call of it, in float32.
    """

    def __init__(self, opened: Mapped, batches: Sequence[Named], example: Named, memory: float) -> None:
        self.opened, self.batches = opened, batches
        failed = failing(opened.model, example, "its text")
        with opened.running() as model, torch.no_grad(), _noting(model) as calls, failed:
            flow = flow_of(model, example)
        opened.release()
        self.blocks = blocks_in(opened.model, flow)
        self.examples = {path: calls[path] for path in self.blocks}
        self._on_disk = False
        self.memory = memory
        self._replay = Replay(opened.model, flow, limit=float("inf"), keep=self._kept)
        self._put: dict[str, nn.Module] = {}

    def inputs(self, path: str) -> Calls:
        """Return what the block at ``path`` is called on, batch by batch, in float32."""
        return Calls(self, path)

    def put(self, path: str, block: nn.Module) -> None:
        """Let a block be what it has become; it runs when a later one is reached."""
        self._put[path] = block

    def reach(self, path: str) -> None:
        """Run the blocks that have become what they are, on every batch, up to the one at ``path``."""
        following = [*self._put, path][1:]
        for (own, block), after in zip(self._put.items(), following, strict=True):
            with self._running(own, copied(block).float()):
                for index in range(len(self.batches)):
                    self._call(after, index)
            self.opened.release()
        self._put.clear()

    def outputs(self) -> Iterator[Any]:
        """Yield what the network puts out on each batch, once all its blocks are what they have become."""
        *_, last = self._put
        block = self._put.pop(last)
        self.reach(last)
        with self._running(last, copied(block).float()):
            for index, batch in enumerate(self.batches):
                yield self._replay.finished(batch, index)

    @contextmanager
    def _running(self, path: str, block: nn.Module) -> Iterator[None]:
        module: Any = self.opened.model.get_submodule(path)
        module.forward = _called(block)
        try:
            yield
        finally:
            del module.forward

    def _call(self, path: str, index: int) -> Named:
        (args, kwargs, _), *_ = self._replay.calls(path, 1, self.batches[index], index, ended=False)
        return _float(_named(self.opened.model.get_submodule(path), args, kwargs))

    def _kept(self, tensor: Tensor) -> Tensor:
        if not self._on_disk and sum(self._replay.bytes.values()) + tensor.nbytes > self.memory:
            self._on_disk = True
        if not self._on_disk or not tensor.numel():
            return tensor.clone()
        with tempfile.NamedTemporaryFile() as file:  # the mapping outlives its name
            file.truncate(tensor.nbytes)
            kept = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return kept.view(tensor.shape).copy_(tensor)


@dataclass(frozen=True)
class Calls:
    """The calls of one block, computed anew each time they are iterated over."""

    walk: Walk
    path: str

    def __iter__(self) -> Iterator[Named]:
        for index in range(len(self.walk.batches)):
            yield self.walk._call(self.path, index)


@contextmanager
def _noting(model: nn.Module) -> Iterator[dict[str, Named]]:
    """Note on what each child of a list, and the network, is called first."""
    calls: dict[str, Named] = {}

    def note(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Named) -> None:
        if path not in calls:
            with _disable_current_modes():  # who watches the network does not see this
                calls[path] = _float(fresh(_named(module, args, kwargs)))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            above = model.get_submodule(path.rpartition(".")[0]) if path else module
            if not path or isinstance(above, (nn.ModuleList, nn.Sequential)):
                hook = module.register_forward_pre_hook(partial(note, path), with_kwargs=True)
                stack.callback(hook.remove)
        yield calls


def _called(block: nn.Module) -> Callable[..., Any]:
    """Return a forward that computes in the block's float32 and gives back the dtype of what it was given."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = next(t for t in _pytree.tree_leaves((args, kwargs)) if _is_float(t))
        args, kwargs = _float((args, kwargs))
        return _pytree.tree_map(
            lambda t: t.to(given.dtype) if _is_float(t) else t, call_model(block, args, kwargs)
        )

    return forward


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Named) -> Named:
    # The class's own: another forward may stand in its place just now.
    _, *names = inspect.signature(type(module).forward).parameters.values()
    if len(args) > sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in names):
        raise ModelError(f"{type(module).__name__}: takes arguments that have no names, as no block does")
    return {p.name: value for p, value in zip(names, args, strict=False)} | kwargs


def _float(value: Any) -> Any:
    return _pytree.tree_map(lambda t: t.float() if _is_float(t) else t, value)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
