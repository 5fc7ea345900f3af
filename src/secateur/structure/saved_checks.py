"""What a file says of a reshaped model, and whether it fits the one that it is read into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import ModelError, StorageError
from secateur.graph.capture import all_tensors, first_names
from secateur.structure.attributes import settings_of
from secateur.structure.blocks import replaced_class
from secateur.structure.replaced.attention import PrunedAttention
from secateur.structure.replaced.norms import PrunedLayerNorm, eps_name, is_eps
from secateur.text import nearest

# What surgery makes of a module of torch's, by what a fresh model has there.
PRUNED: dict[type[nn.Module], type[nn.Module]] = {
    PrunedAttention: nn.MultiheadAttention,
    PrunedLayerNorm: nn.LayerNorm,
}
# How files name these, wherever their code stands.
_NAMED: dict[type, str] = {
    PrunedAttention: "secateur.structure.attention.PrunedAttention",
    PrunedLayerNorm: "secateur.structure.normalisation.PrunedLayerNorm",
}


@dataclass(frozen=True)
class Saved:
    """The tensors of a file, by its ``path``, and what its metadata say of a model, of the right types
    throughout: the name of its class, the other names of tied tensors, class and sizes of every module, and
    the classes of removed blocks."""

    path: str | Path
    tensors: Mapping[str, Tensor]
    kind: str
    tied: dict[str, str]
    modules: dict[str, list[Any]]
    removed: dict[str, str]


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """Return the integers (and tuples of them) that a module, or a configuration it holds, keeps, and
    the eps of an RMSNorm, which follows its size."""
    sizes = {name: value for name, value in vars(module).items() if _is_size(value)}
    eps = eps_name(module)
    if eps is not None:
        sizes[eps] = vars(module)[eps]
    for name, holder in settings_of(module):
        inner = {key: value for key, value in vars(holder).items() if _is_size(value)}
        sizes |= {f"{name}.{key}": value for key, value in inner.items()}
    return sizes


def _is_size(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and len(value) < 64 and all(_is_size(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def typed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: str | Path) -> Saved:
    """Check the metadata of a file as far as that goes without the model."""
    kinds, said = {"class": str, "tied": dict, "modules": dict, "removed": dict}, {"removed": {}, **metadata}
    if not all(isinstance(said.get(name), kind) for name, kind in kinds.items()):
        raise StorageError(f"{path}: what it says of the model's modules is damaged")
    kind, tied, modules, removed = (said[name] for name in kinds)
    for place, described in modules.items():
        if not (isinstance(described, list) and [type(part) for part in described] == [str, dict]):
            raise StorageError(f"{path}: what it says of the model's modules is damaged: {place!r}")
    for name, first in tied.items():
        if name in tensors or not isinstance(first, str) or first not in tensors:
            raise StorageError(f"{path}: {name!r} cannot be tied to {first!r}")
    identity = [class_of(nn.Identity), {}]
    for place, lost in removed.items():
        if not place or not isinstance(lost, str) or modules.get(place) != identity:
            raise StorageError(f"{path}: {place!r} cannot be a block that was removed")
    return Saved(path, tensors, kind, tied, modules, removed)


def removed_in(model: nn.Module, saved: Saved) -> set[str]:
    """Return the places where the saved model has an ``nn.Identity`` for a block that it lost, and this
    one still has the block: of the class that is written in the file."""
    own = dict(model.named_modules())
    found: set[str] = set()
    for place, kind in saved.removed.items():
        if place not in own:
            continue  # the check of the modules says so
        stands = replaced_class(own[place])
        if not _alike(stands or class_of(type(own[place])), kind):
            raise ModelError(
                f"{saved.path}: module {place!r} was a {kind} before it was removed and is a "
                f"{class_of(type(own[place]))} here; load it into a fresh {saved.kind}"
            )
        if stands is None:
            found.add(place)
    return found


def _alike(one: str, other: str) -> bool:
    """A module written in a script is __main__'s when it saves, and another's when it is imported."""
    return one.rpartition(".")[2] == other.rpartition(".")[2]


def _below(name: str, removed: Collection[str]) -> bool:
    return any(name.startswith(f"{place}.") for place in removed)


def check_modules(model: nn.Module, saved: Saved, removed: Collection[str]) -> None:
    path, modules = saved.path, dict(model.named_modules()) | {place: nn.Identity() for place in removed}
    own = {place: class_of(type(module)) for place, module in modules.items() if not _below(place, removed)}
    for place in sorted(saved.modules.keys() ^ own.keys()):
        here, there = ("the file", "the model") if place in saved.modules else ("the model", "the file")
        raise ModelError(
            f"{path}: {here} has a module {place!r} and {there} has not; load it into a {saved.kind}"
        )
    before = {class_of(new): old for new, old in PRUNED.items()}
    for place, (kind, sizes) in saved.modules.items():
        fresh = before.get(kind)
        good = _alike(own[place], kind) if fresh is None else isinstance(modules[place], fresh)
        if not good:
            raise ModelError(
                f"{path}: module {place or 'itself'!r} was a {kind} and is a {own[place]} here; "
                f"load it into a fresh {saved.kind}"
            )
        _check_sizes(modules[place], place, kind, sizes, path)


def _check_sizes(
    module: nn.Module, place: str, kind: str, sizes: Mapping[str, Any], path: str | Path
) -> None:
    """Sizes are integers, or lists of them where the module has a list; the one other number is the eps of
    a norm."""
    eps, now = eps_name(module), sizes_of(module)
    for name, value in sizes.items():
        good = is_eps(value, module) if name == eps else _is_size(value)
        if not good or (name in now and many(now[name]) != many(value)):
            raise StorageError(f"{path}: {name!r} of module {place!r} cannot be {value!r:.80}")
    if kind == class_of(PrunedLayerNorm):
        full, weight = sizes.get("full_size"), module._parameters["weight"]
        own = getattr(module, "full_size", 0 if weight is None else len(weight))
        if full != own:
            raise ModelError(
                f"{path}: module {place!r} was cut from a LayerNorm over {full} channels and has {own} here; "
                "load it into the model at its full size"
            )


def class_of(kind: type) -> str:
    return _NAMED.get(kind) or f"{kind.__module__}.{kind.__qualname__}"


def check_names(model: nn.Module, saved: Saved, removed: Collection[str]) -> None:
    own = {name: tensor for name, tensor in all_tensors(model) if not _below(name, removed)}
    path, there = saved.path, {*saved.tensors, *saved.tied}
    for name in sorted(there - own.keys()):
        raise ModelError(f"{path}: holds a tensor {name!r} that the model has not{nearest(name, own)}")
    for name in sorted(own.keys() - there):
        raise ModelError(f"{path}: has no tensor {name!r}, which the model needs{nearest(name, there)}")
    _check_ties(own, first_names(model), saved)
    for name, tensor in saved.tensors.items():
        if tensor.dtype != own[name].dtype:
            raise ModelError(
                f"{path}: {name} is {tensor.dtype} there and {own[name].dtype} in the model; "
                f"convert the model first: model.to({tensor.dtype})"
            )
        if tensor.dim() != own[name].dim():
            raise ModelError(
                f"{path}: {name} has {tensor.dim()} dims there and {own[name].dim()} in the model"
            )
        if any(a > b for a, b in zip(tensor.shape, own[name].shape, strict=True)):
            raise ModelError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, more than the model's "
                f"{tuple(own[name].shape)}; load it into the model at its full size"
            )


def _check_ties(own: Mapping[str, Tensor], firsts: Mapping[str, str], saved: Saved) -> None:
    """One tensor under two names must be one in the file too, and the other way round."""
    tied, path = saved.tied, saved.path
    same: dict[int, str] = {}
    for name, tensor in own.items():
        first = same.setdefault(id(tensor), name)
        if tied.get(name, name) != tied.get(first, first):
            raise ModelError(f"{path}: {name} and {first} are two tensors there and one in the model")
        there = tied.get(name, name)
        if firsts[there] != firsts[name]:
            raise ModelError(f"{path}: {name} and {there} are one tensor there and two in the model")
