"""Other ways in which modules compute what their forward does: they read sizes of their own, which follow.

Exports of YOLO take ``forward_split`` of its blocks, say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.copying import copied, fresh
from secateur.graph.compare import TOLERANCE, difference
from secateur.running import in_full_precision
from secateur.structure.attributes import Sizes, adjust
from secateur.structure.runs import Run

Calls = dict[str, tuple[Any, Any, Any]]


def follow(model: nn.Module, small: nn.Module, run: Run, sizes: Mapping[str, Sizes]) -> list[str]:
    """Set in the modules of ``small`` the sizes that their other forwards read, where these gave the
    forward's output in ``model``; return what changed. ``sizes`` are those that changed, by module."""
    others = {
        path: names
        for path, module in model.named_modules()
        if path in sizes and (names := [name for name in dir(type(module)) if name.startswith("forward_")])
    }
    others.pop("", None)  # a network's own are ``methods=``
    if not others:
        return []
    before, after = copied(model).eval(), copied(small).eval()
    given, wanted = _calls(before, run, others), _calls(after, run, others)
    changes: list[str] = []
    for path, names in others.items():
        for name in names:
            if path in given and path in wanted and _same(before.get_submodule(path), name, given[path]):
                work, call = after.get_submodule(path), wanted[path]
                found, _ = adjust(
                    work, {"": sizes[path]}, _running(work, name, call), lambda out, c=call: _equal(c[2], out)
                )
                for change in found:
                    change.apply(small.get_submodule(path))
                    changes.append(f"{path}.{change}")
    return changes


def _calls(work: nn.Module, run: Run, paths: Mapping[str, Any]) -> Calls:
    """Return what modules are given in a run, and what they give."""
    calls: Calls = {}
    hooks = []
    for path in paths:

        def seen(_: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            calls[path] = fresh((args, kwargs, output))

        hooks.append(work.get_submodule(path).register_forward_hook(seen, with_kwargs=True))
    with torch.no_grad():
        run.on(work)
    for hook in hooks:
        hook.remove()
    return calls


def _same(module: nn.Module, name: str, call: tuple[Any, Any, Any]) -> bool:
    try:
        with torch.no_grad():
            return _equal(call[2], _running(module, name, call)())
    except Exception:  # it is no other way of the forward: it takes something else
        return False


def _running(module: nn.Module, name: str, call: tuple[Any, Any, Any]) -> Callable[[], Any]:
    def run() -> Any:
        module.forward = getattr(module, name)  # so that it is seen in which module it fails
        try:
            with in_full_precision():
                return module(*fresh(call[0]), **fresh(call[1]))
        finally:
            del module.forward

    return run


def _equal(wanted: Any, found: Any) -> bool:
    return difference(wanted, found) <= TOLERANCE[torch.float32]
