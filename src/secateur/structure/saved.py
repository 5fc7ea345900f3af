"""Save a reshaped model and load it into a fresh one of its class: safetensors and JSON, no pickle.

What a file holds: every parameter and buffer (tied ones once), and for every module its class, the
integer attributes that say how large it is, and the eps of an RMSNorm. Loading builds nothing and runs
nothing from the file: the caller makes the original, full-size model, and it is given the saved shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import ModelError, NonFiniteError, StorageError
from secateur.graph.capture import all_tensors, first_names
from secateur.graph.names import unwrapped
from secateur.running import evaluating
from secateur.storage import all_finite, check_digest, digest_of, load_tensors, save_tensors
from secateur.structure.attributes import settings_of
from secateur.structure.blocks import identity_for, replaced_class
from secateur.structure.graph_files import ALLOW, describe_graph
from secateur.structure.graph_files import FORMAT as GRAPH
from secateur.structure.graph_form import is_graph_form
from secateur.structure.replaced import attention, norms
from secateur.structure.replaced.attention import PrunedAttention
from secateur.structure.replaced.norms import PrunedLayerNorm, eps_name, is_eps
from secateur.structure.replaced.two_layers import as_two, ranks_of
from secateur.structure.surgery import set_attributes
from secateur.text import nearest

FORMAT = "model 2"
_MANY = 2**30  # values that are hashed whatever the model has: a file with holes can claim any number
# What surgery makes of a module of torch's, by what a fresh model has there.
_PRUNED: dict[type[nn.Module], type[nn.Module]] = {
    PrunedAttention: nn.MultiheadAttention,
    PrunedLayerNorm: nn.LayerNorm,
}
# How files name these, wherever their code stands.
_NAMED: dict[type, str] = {
    PrunedAttention: "secateur.structure.attention.PrunedAttention",
    PrunedLayerNorm: "secateur.structure.normalisation.PrunedLayerNorm",
}


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model, reshaped or not, to a safetensors file that ``load`` reads; one of ``form="graph"`` to a
    file that ``load_graph`` reads.

    It holds tensors and sizes, no code. The file appears at once and whole.

    Args:
        model: the network; wrappers leave no trace in the names.
        path: the file to write.

    Raises:
        WriteError: where the file cannot be written.

    Example:
        >>> import torch, secateur as sc
        >>> sc.save(torch.nn.Linear(6, 4), "layer.safetensors")
        >>> sc.load(torch.nn.Linear(6, 4), "layer.safetensors")
        Linear(in_features=6, out_features=4, bias=True)
    """
    if is_graph_form(model):
        tensors, metadata = describe_graph(model)  # type: ignore[arg-type]
    else:
        tensors, described = describe(model)
        metadata = {"secateur": FORMAT, **described}
    save_tensors(path, tensors, {**metadata, "sha256": digest_of(tensors, metadata)})


def describe(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a model's tensors, tied ones once, and what ``restore`` needs besides: pure JSON."""
    model = unwrapped(model)
    names = first_names(model)
    tensors = {name: tensor.detach() for name, tensor in all_tensors(model) if names[name] == name}
    described: dict[str, Any] = {
        "class": _class_of(type(model)),
        "tied": {name: first for name, first in names.items() if first != name},
        "modules": {
            path: [_class_of(type(module)), _sizes(module)] for path, module in model.named_modules()
        },
    }
    removed = {path: replaced_class(module) for path, module in model.named_modules()}
    if any(removed.values()):
        described["removed"] = {path: kind for path, kind in removed.items() if kind}
    if ranks := ranks_of(model):
        described["ranks"] = ranks
    return tensors, described


@dataclass(frozen=True)
class _Saved:
    """The tensors of a file, by its ``path``, and what its metadata say of a model, of the right types
    throughout: the name of its class, the other names of tied tensors, class and sizes of every module, and
    the classes of removed blocks."""

    path: str | Path
    tensors: Mapping[str, Tensor]
    kind: str
    tied: dict[str, str]
    modules: dict[str, list[Any]]
    removed: dict[str, str]


def load(model: nn.Module, path: str | Path, *, allow_nonfinite: bool = False) -> nn.Module:
    """Give ``model``, fresh and of the class that was saved, the shapes and values of a saved one.

    Every name, shape, dtype and value is checked before the first change. Where the saved model has lost a
    residual block, an ``nn.Identity`` takes its place.

    Args:
        model: a fresh network at its full size; it is changed in place.
        path: a file of ``save``.
        allow_nonfinite: take weights that hold a NaN or an infinity.

    Returns:
        The model.

    Raises:
        StorageError: for a file that is damaged, changed or of another kind.
        ModelError: for a model of another class, with other modules or of other dtypes.
        NonFiniteError: for weights that hold a NaN or an infinity, unless ``allow_nonfinite``.

    Example:
        >>> import torch, secateur as sc
        >>> def make():
        ...     return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> small, proof = sc.prune_to(make(), torch.randn(2, 8), parameters=0.5)
        >>> sc.save(small, "small.safetensors")
        >>> sc.load(make(), "small.safetensors")[0]
        Linear(in_features=8, out_features=7, bias=True)
    """
    model = unwrapped(model)
    tensors, metadata = load_tensors(path)
    if metadata.get("secateur") == GRAPH:
        raise StorageError(f"{path}: holds a network as a graph; secateur.load_graph(path) opens it")
    if metadata.get("secateur") != FORMAT:
        raise StorageError(f"{path}: not a model saved by secateur (its metadata lack 'secateur: {FORMAT}')")
    there, own = (sum(map(Tensor.numel, t)) for t in (tensors.values(), dict(all_tensors(model)).values()))
    if there > max(_MANY, 2 * own):
        raise ModelError(f"{path}: holds {there:,} values, far more than the model, which has {own:,}")
    check_digest(path, tensors, metadata)
    return restore(model, tensors, metadata, path, allow_nonfinite=allow_nonfinite)


def restore(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    path: str | Path,
    *,
    allow_nonfinite: bool = False,
) -> nn.Module:
    """Do what ``load`` does with what ``describe`` returned; ``path`` is for the errors."""
    saved = _typed(tensors, metadata, path)
    with as_two(model, metadata.get("ranks", {}), path):
        return _restore(model, saved, allow_nonfinite)


def _restore(model: nn.Module, saved: _Saved, allow_nonfinite: bool) -> nn.Module:
    path, removed = saved.path, _removed(model, saved)
    _check_modules(model, saved, removed)
    _check_names(model, saved, removed)
    if not allow_nonfinite:
        check_finite(dict(all_tensors(model)), saved.tensors, path, ALLOW)
    with _whole_or_not_at_all(model):
        for place in removed:
            parent, _, leaf = place.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = identity_for(model.get_submodule(place))
        _fill(model, saved)
        for place, module in list(model.named_modules()):
            kind, sizes = saved.modules[place]
            if kind == _class_of(PrunedAttention) and not isinstance(module, PrunedAttention):
                attention.become_pruned_attention(module)  # type: ignore[arg-type]
            elif kind == _class_of(PrunedLayerNorm):
                norms.become_pruned_norm(module, sizes["full_size"])  # type: ignore[arg-type]
            _set_sizes(module, sizes)
            with evaluating(module):  # to look at a weight under spectral norm is to change it in training
                _check_fits(module, place, path)
    return model


def check_finite(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path, hint: str = ""
) -> None:
    """Raise NonFiniteError for a NaN or an infinity in ``tensors``, but in a buffer that has some by
    nature: in the model's ``own`` too."""
    for name, tensor in tensors.items():
        if all_finite(tensor) or not (isinstance(own[name], nn.Parameter) or all_finite(own[name])):
            continue
        raise NonFiniteError(f"{path}: {name} holds a NaN or an infinity{hint}")


@contextmanager
def _whole_or_not_at_all(model: nn.Module) -> Iterator[None]:
    """Put every module back as it was where the block raises: no check foresees all that a class does."""
    modules = list(model.modules())
    kinds = [(module, type(module)) for module in modules]
    holders: list[Any] = [vars(holder) for module in modules for _, holder in settings_of(module)]
    holders += [vars(module) for module in modules]
    inner = [value for holder in holders for value in holder.values() if type(value) in (dict, list)]
    kept = [(container, copy.copy(container)) for container in (*holders, *inner)]
    try:
        yield
    except BaseException:
        for module, kind in kinds:
            module.__class__ = kind
        for container, before in kept:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)
        raise


def _sizes(module: nn.Module) -> dict[str, Any]:
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


def _check_fits(module: nn.Module, place: str, path: str | Path) -> None:
    """What a module of torch's says of its size must be what its tensors are."""
    known = type(module) in _PRUNED or type(module).__module__.startswith("torch.nn.")
    if not known or getattr(module, "proj_size", 0):
        return
    said = _sizes(module)
    try:
        set_attributes(module, place, {}, {})
        if isinstance(module, PrunedAttention):
            attention.become_pruned_attention(module)
        fits = _sizes(module) == said
    except ZeroDivisionError:  # of groups, say
        fits = False
    if not fits:
        raise StorageError(f"{path}: the sizes of module {place!r} are not those of its tensors")


def _set_sizes(module: nn.Module, sizes: Mapping[str, Any]) -> None:
    now = _sizes(module)
    for name, value in sizes.items():
        new = type(now[name])(value) if name in now and _many(value) else value
        if name in now and now[name] != new:
            inner, _, attribute = name.rpartition(".")
            vars(vars(module)[inner] if inner else module)[attribute] = new


def _many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _typed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: str | Path) -> _Saved:
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
    identity = [_class_of(nn.Identity), {}]
    for place, lost in removed.items():
        if not place or not isinstance(lost, str) or modules.get(place) != identity:
            raise StorageError(f"{path}: {place!r} cannot be a block that was removed")
    return _Saved(path, tensors, kind, tied, modules, removed)


def _removed(model: nn.Module, saved: _Saved) -> set[str]:
    """Return the places where the saved model has an ``nn.Identity`` for a block that it lost, and this
    one still has the block: of the class that is written in the file."""
    own = dict(model.named_modules())
    found: set[str] = set()
    for place, kind in saved.removed.items():
        if place not in own:
            continue  # the check of the modules says so
        stands = replaced_class(own[place])
        if not _alike(stands or _class_of(type(own[place])), kind):
            raise ModelError(
                f"{saved.path}: module {place!r} was a {kind} before it was removed and is a "
                f"{_class_of(type(own[place]))} here; load it into a fresh {saved.kind}"
            )
        if stands is None:
            found.add(place)
    return found


def _alike(one: str, other: str) -> bool:
    """A module written in a script is __main__'s when it saves, and another's when it is imported."""
    return one.rpartition(".")[2] == other.rpartition(".")[2]


def _below(name: str, removed: Collection[str]) -> bool:
    return any(name.startswith(f"{place}.") for place in removed)


def _check_modules(model: nn.Module, saved: _Saved, removed: Collection[str]) -> None:
    path, modules = saved.path, dict(model.named_modules()) | {place: nn.Identity() for place in removed}
    own = {place: _class_of(type(module)) for place, module in modules.items() if not _below(place, removed)}
    for place in sorted(saved.modules.keys() ^ own.keys()):
        here, there = ("the file", "the model") if place in saved.modules else ("the model", "the file")
        raise ModelError(
            f"{path}: {here} has a module {place!r} and {there} has not; load it into a {saved.kind}"
        )
    before = {_class_of(new): old for new, old in _PRUNED.items()}
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
    eps, now = eps_name(module), _sizes(module)
    for name, value in sizes.items():
        good = is_eps(value, module) if name == eps else _is_size(value)
        if not good or (name in now and _many(now[name]) != _many(value)):
            raise StorageError(f"{path}: {name!r} of module {place!r} cannot be {value!r:.80}")
    if kind == _class_of(PrunedLayerNorm):
        full, weight = sizes.get("full_size"), module._parameters["weight"]
        own = getattr(module, "full_size", 0 if weight is None else len(weight))
        if full != own:
            raise ModelError(
                f"{path}: module {place!r} was cut from a LayerNorm over {full} channels and has {own} here; "
                "load it into the model at its full size"
            )


def _class_of(kind: type) -> str:
    return _NAMED.get(kind) or f"{kind.__module__}.{kind.__qualname__}"


def _check_names(model: nn.Module, saved: _Saved, removed: Collection[str]) -> None:
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


def _check_ties(own: Mapping[str, Tensor], firsts: Mapping[str, str], saved: _Saved) -> None:
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


def _fill(model: nn.Module, saved: _Saved) -> None:
    made: dict[str, Tensor] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        for leaf, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            name = f"{place}.{leaf}" if place else leaf
            first = saved.tied.get(name, name)
            if first not in made:
                new = saved.tensors[first].to(old.device)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                made[first] = new
            setattr(module, leaf, made[first])
