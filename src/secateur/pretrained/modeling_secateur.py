"""A network of transformers that secateur made smaller: its class, narrowed before the weights are read.

``secateur.json`` beside this file says what is narrower than the configuration has it: data, written and read
as such. This file needs torch and transformers alone.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import nn
from transformers.utils import cached_file

PLAN = "secateur.json"


class Narrowed:
    """What stands before a class of transformers, to make it one that is as large as its plan says."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        revision = getattr(config, "_commit_hash", None)
        with open(str(cached_file(config.name_or_path, PLAN, revision=revision)), encoding="utf-8") as file:
            self.secateur_plan = json.load(file)
        narrow(self, self.secateur_plan)  # type: ignore[arg-type]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        with open(os.path.join(save_directory, PLAN), "w", encoding="utf-8") as file:
            json.dump(self.secateur_plan, file)


def narrow(model: nn.Module, plan: dict[str, Any]) -> None:
    """Give a model as its configuration builds it the layers, shapes and sizes of a plan, in place."""
    for path, rank in plan["ranks"].items():
        model.set_submodule(path, _two(model.get_submodule(path), rank))
    for path, replaces in plan["removed"].items():
        model.set_submodule(path, nn.Identity())
        vars(model.get_submodule(path))["replaces"] = replaces
    made: dict[str, torch.Tensor] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        for leaf, old in [*module._parameters.items(), *module._buffers.items()]:
            name = f"{path}.{leaf}" if path else leaf
            name = plan["tied"].get(name, name)
            if old is None or name not in plan["shapes"]:
                continue
            if name not in made:
                new = torch.empty(plan["shapes"][name], dtype=old.dtype, device=old.device)
                is_parameter = isinstance(old, nn.Parameter)
                made[name] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
            setattr(module, leaf, made[name])
            if name in plan["buffers"]:
                module._non_persistent_buffers_set.discard(leaf)  # read from the file like a parameter
    for path, sizes in plan["modules"].items():
        for name, value in sizes.items():
            inner, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            holder = vars(vars(module)[inner] if inner else module)
            old = holder[attribute]
            holder[attribute] = type(old)(value) if isinstance(old, (list, tuple)) else value


def _two(layer: Any, rank: int) -> nn.Sequential:
    """Two layers through ``rank`` channels for one."""
    first = nn.Linear(layer.in_features, rank, bias=False)
    return nn.Sequential(first, nn.Linear(rank, layer.out_features, bias=layer.bias is not None))
