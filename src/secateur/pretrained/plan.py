"""The plan of a narrowed network: what it is narrower in than its configuration builds it, as plain JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.graph.capture import all_tensors, first_names
from secateur.pretrained.skeleton import skeleton
from secateur.structure.blocks import replaced_class
from secateur.structure.replaced.two_layers import ranks_of
from secateur.structure.saved_checks import class_of, sizes_of

FORMAT = "pretrained 1"


def plan_of(small: Any, config: Any) -> dict[str, Any]:
    """Return the plan by which the model that ``config`` builds becomes as large as ``small``."""
    stock = skeleton(type(small), config, dtype=torch.float32)
    own, made = dict(small.named_modules()), dict(stock.named_modules())
    removed = {path: kind for path, module in own.items() if (kind := replaced_class(module))}
    ranks = ranks_of(small)
    names, tensors = first_names(small), dict(all_tensors(small))
    before = dict(all_tensors(stock))
    shapes = {
        name: list(tensor.shape)
        for name, tensor in tensors.items()
        if names[name] == name and name in before and before[name].shape != tensor.shape
    }
    within = tuple(f"{path}." for path in (*removed, *ranks))
    for path, module in own.items():
        there = made.get(path)
        said = path in removed or path in ranks or path.startswith(within)
        if not said and (there is None or class_of(type(there)) != class_of(type(module))):
            raise ModelError(
                f"{path} is a {class_of(type(module))}, which no folder of transformers says; keep it with "
                "secateur.save(small, file), and secateur.load(model, file) opens it"
            )
    return {
        "secateur": FORMAT,
        "class": type(small).__name__,
        "shapes": shapes,
        "tied": {name: first for name, first in names.items() if name != first and first in shapes},
        "modules": {
            path: changed
            for path, module in own.items()
            if path in made and (changed := _changed(_numbers(made[path]), _numbers(module)))
        },
        "removed": removed,
        "ranks": ranks,
        "buffers": _own_buffers(small, before),
    }


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Sizes, and what was computed of them when the module was built: a scale of scores, say."""
    return sizes_of(module) | {name: value for name, value in vars(module).items() if type(value) is float}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes that differ, but for those of the configuration, which is written itself."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in after.items()
        if name in before and before[name] != value and not name.startswith("config.")
    }


def _own_buffers(small: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Return the buffers that no file of weights holds, and a configuration does not give: what is left of a
    table of frequencies, say."""
    kept = small.state_dict().keys()
    return [
        name
        for name, tensor in all_tensors(small)
        if not isinstance(tensor, nn.Parameter)
        and name not in kept
        and name in before
        and not (before[name].shape == tensor.shape and torch.equal(before[name].to(tensor), tensor))
    ]
