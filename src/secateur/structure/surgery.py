"""Cut the indices that go out of a copy of a model, and set what its modules say about sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.graph.capture import first_names, parameters_of, tensor_of
from secateur.structure.labels import Array, Classes
from secateur.structure.layers import layer_view, set_sizes
from secateur.structure.propagate import Walk
from secateur.structure.replaced.attention import become_pruned_attention
from secateur.structure.replaced.norms import repair
from secateur.structure.units import Structure

Removed = dict[tuple[str, int], Array]
"""By (parameter or buffer, dim): the sorted indices that go."""

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def removed_by(structure: Structure, pruned: Mapping[str, Array]) -> Removed:
    """Return what goes from each tensor when the units ``pruned`` (a bool a unit, by group) go."""
    found: dict[tuple[str, int], list[Array]] = {}
    for name, units in pruned.items():
        for part in structure.groups[name].slices:
            found.setdefault((part.name, part.dim), []).append(part.indices[units].reshape(-1))
    return {
        place: np.unique(np.concatenate(parts))
        for place, parts in found.items()
        if sum(len(part) for part in parts)
    }


def classes_removed(walk: Walk, classes: Classes, removed: Removed) -> Array:
    """Return which classes of labels go with what goes from the tensors."""
    pruned = np.zeros(len(classes.frozen), dtype=bool)
    for (name, dim), indices in removed.items():
        labels = walk.parameters[name].dims[dim]
        if labels is not None:
            pruned[classes.of[labels[indices]]] = True
    return pruned


def entries_left(tensor: Tensor, name: str, removed: Removed) -> int:
    """Return how many entries a tensor of this name keeps."""
    return math.prod(size - len(removed.get((name, dim), ())) for dim, size in enumerate(tensor.shape))


def parameters_left(structure: Structure, pruned: Mapping[str, Array]) -> int:
    """Return how many parameters the network keeps when the units ``pruned`` go."""
    removed = removed_by(structure, pruned)
    return sum(entries_left(p, name, removed) for name, p in parameters_of(structure.model))


@torch.no_grad()
def mask_units(model: nn.Module, structure: Structure, pruned: Mapping[str, Array]) -> None:
    """Zero every slice of the units ``pruned`` in place: rows, biases, norm affines and columns."""
    for name, units in pruned.items():
        if not units.any():
            continue
        for part in structure.groups[name].slices:
            if part.masked:
                index = torch.from_numpy(part.indices[units].reshape(-1))
                tensor = tensor_of(model, part.name)
                tensor.index_fill_(part.dim, index.to(tensor.device), 0)


def kept_index(size: int, pruned: Array) -> Tensor:
    """Return the indices of a dim of ``size`` that stay."""
    keep = np.ones(size, dtype=bool)
    keep[pruned] = False
    return torch.from_numpy(np.flatnonzero(keep))


def sliced(tensor: Tensor, name: str, removed: Removed) -> Tensor:
    """Return a tensor of the shape of parameter ``name`` without the indices that go, its channels still
    last in memory where they were."""
    layout = _FORMATS.get(tensor.dim())
    if layout is not None and (tensor.is_contiguous() or not tensor.is_contiguous(memory_format=layout)):
        layout = None
    for dim in range(tensor.dim()):
        pruned = removed.get((name, dim))
        if pruned is not None:
            tensor = tensor.index_select(dim, kept_index(tensor.shape[dim], pruned).to(tensor.device))
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


@torch.no_grad()
def cut(model: nn.Module, removed: Removed) -> None:
    """Cut ``removed`` out of ``model`` in place, ties and ``requires_grad`` kept.

    Attributes of the layers and norms that ``layers`` knows follow; those of others are
    ``attributes``' to find. Norms over a dim that got smaller are mended (``replaced.norms``).
    """
    names = first_names(model)
    touched = {name for name, _ in removed}
    fresh: dict[int, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):
            for leaf, tensor in list(store.items()):
                full = f"{path}.{leaf}" if path else leaf
                first = names.get(full, full)
                if tensor is None or first not in touched:
                    continue
                if id(tensor) not in fresh:
                    new = sliced(tensor, first, removed).clone()
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    fresh[id(tensor)] = new
                    fresh[id(new)] = new
                new = fresh[id(tensor)]
                if new is not tensor:
                    setattr(module, leaf, new)  # RNN modules follow their parameters only through this
    scaled: set[int] = set()
    for path, module in model.named_modules():
        set_attributes(module, path, removed, names)
        full = f"{path}.weight" if path else "weight"
        lost = removed.get((names.get(full, full), 0))
        weight = module._parameters.get("weight")
        if lost is not None and weight is not None:
            repair(module, len(weight) + len(lost), scaled)
        if isinstance(module, nn.MultiheadAttention) and _touched(module, path, touched, names):
            become_pruned_attention(module)


def _touched(module: nn.Module, path: str, touched: set[str], names: Mapping[str, str]) -> bool:
    own = (f"{path}.{name}" if path else name for name, _ in module.named_parameters())
    return any(names.get(name, name) in touched for name in own)


def set_attributes(module: nn.Module, path: str, removed: Removed, names: Mapping[str, str]) -> None:
    """Set the sizes that layers and norms keep as attributes, and how many groups they have left."""
    per_group = module.num_channels // module.num_groups if isinstance(module, nn.GroupNorm) else 0
    full = f"{path}.weight" if path else "weight"
    rows = removed.get((names.get(full, full), 0))
    view = layer_view(module)
    if view is not None and view.groups > 1 and rows is not None:
        size = module.in_channels if module.transposed else module.out_channels
        module.groups = groups_left(rows, size, module.groups)  # type: ignore[assignment, arg-type]
    set_sizes(module)
    if isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_channels // per_group


def groups_left(rows: Array, size: int, groups: int) -> int:
    """Return how many groups a convolution has left without ``rows`` of the first dim, of ``size``, of its
    weight: whole ones went where all rows of a group did."""
    before = size // groups
    pruned = np.bincount(rows // before, minlength=groups)
    return int((pruned == 0).sum()) if ((pruned == 0) | (pruned == before)).all() else groups
