"""Save a reshaped model and load it into a fresh one of its class: safetensors and JSON, no pickle.

What a file holds: every parameter and buffer (tied ones once), and for every module its class, the
integer attributes that say how large it is, and the eps of an RMSNorm. Loading builds nothing and runs
nothing from the file: the caller makes the original, full-size model, and it is given the saved shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import ModelError, NonFiniteError, StorageError
from secateur.graph.capture import all_tensors, first_names
from secateur.graph.names import unwrapped
from secateur.numeric import is_whole
from secateur.running import evaluating
from secateur.shards import as_written, refuse_sharded
from secateur.storage import all_finite, check_digest, digest_of, load_tensors, save_tensors
from secateur.structure.attributes import settings_of
from secateur.structure.blocks import identity_for, replaced_class
from secateur.structure.graph_files import ALLOW, describe_graph
from secateur.structure.graph_files import FORMAT as GRAPH
from secateur.structure.graph_form import is_graph_form
from secateur.structure.replaced import attention, norms
from secateur.structure.replaced.attention import PrunedAttention
from secateur.structure.replaced.norms import PrunedLayerNorm
from secateur.structure.replaced.two_layers import as_two, ranks_of
from secateur.structure.saved_checks import (
    PRUNED,
    Saved,
    check_modules,
    check_names,
    class_of,
    many,
    removed_in,
    sizes_of,
    typed,
)
from secateur.structure.stated import rows_of
from secateur.structure.surgery import set_attributes

FORMAT = "model 2"
_MANY = 2**30  # values that are hashed whatever the model has: a file with holes can claim any number


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model, reshaped or not, to a safetensors file that ``load`` reads; one of ``form="graph"`` to a
    file that ``load_graph`` reads.

    It holds tensors and sizes, no code. The file appears at once and whole. Of a network that is sharded over
    processes all of them call this: parameters are gathered one by one, and the first process writes the file
    that the whole network would give.

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
    with as_written(model):
        return _described(model)


def _described(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = first_names(model)
    tensors = {name: tensor.detach() for name, tensor in all_tensors(model) if names[name] == name}
    described: dict[str, Any] = {
        "class": class_of(type(model)),
        "tied": {name: first for name, first in names.items() if first != name},
        "modules": {
            path: [class_of(type(module)), sizes_of(module)] for path, module in model.named_modules()
        },
    }
    removed = {path: replaced_class(module) for path, module in model.named_modules()}
    if any(removed.values()):
        described["removed"] = {path: kind for path, kind in removed.items() if kind}
    if ranks := ranks_of(model):
        described["ranks"] = ranks
    if rows := rows_of(model):
        described["features"] = [row["num_chs"] for row in rows]
    return tensors, described


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
        TargetError: for a model whose parameters are sharded already.
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
    refuse_sharded(model, "load")
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
    saved = typed(tensors, metadata, path)
    rows, widths = rows_of(model), metadata.get("features")
    if widths is not None and not (_are_sizes(widths) and len(widths) == len(rows)):
        raise StorageError(f"{path}: what it says of the model's features is damaged, or another model's")
    with as_two(model, metadata.get("ranks", {}), path):
        _restore(model, saved, allow_nonfinite)
    for row, width in zip(rows, widths or [], strict=False):
        row["num_chs"] = width
    return model


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(size) and size >= 0 for size in value)


def _restore(model: nn.Module, saved: Saved, allow_nonfinite: bool) -> nn.Module:
    path, removed = saved.path, removed_in(model, saved)
    check_modules(model, saved, removed)
    check_names(model, saved, removed)
    if not allow_nonfinite:
        check_finite(dict(all_tensors(model)), saved.tensors, path, ALLOW)
    with _whole_or_not_at_all(model):
        for place in removed:
            parent, _, leaf = place.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = identity_for(model.get_submodule(place))
        _fill(model, saved)
        for place, module in list(model.named_modules()):
            kind, sizes = saved.modules[place]
            if kind == class_of(PrunedAttention) and not isinstance(module, PrunedAttention):
                attention.become_pruned_attention(module)  # type: ignore[arg-type]
            elif kind == class_of(PrunedLayerNorm):
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


def _check_fits(module: nn.Module, place: str, path: str | Path) -> None:
    """What a module of torch's says of its size must be what its tensors are."""
    known = type(module) in PRUNED or type(module).__module__.startswith("torch.nn.")
    if not known or getattr(module, "proj_size", 0):
        return
    said = sizes_of(module)
    try:
        set_attributes(module, place, {}, {})
        if isinstance(module, PrunedAttention):
            attention.become_pruned_attention(module)
        fits = sizes_of(module) == said
    except ZeroDivisionError:  # of groups, say
        fits = False
    if not fits:
        raise StorageError(f"{path}: the sizes of module {place!r} are not those of its tensors")


def _set_sizes(module: nn.Module, sizes: Mapping[str, Any]) -> None:
    now = sizes_of(module)
    for name, value in sizes.items():
        new = type(now[name])(value) if name in now and many(value) else value
        if name in now and now[name] != new:
            inner, _, attribute = name.rpartition(".")
            vars(vars(module)[inner] if inner else module)[attribute] = new


def _fill(model: nn.Module, saved: Saved) -> None:
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
