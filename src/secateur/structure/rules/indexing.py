"""Rules of what reads or writes by an index: the dims that are indexed stay, all others carry over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from secateur.graph.calls import Call
from secateur.graph.operators import operator_of
from secateur.structure.propagate import Labelled, Walk, result_of
from secateur.structure.rules.movement import move

aten = torch.ops.aten
Arguments = dict[str, Any]
INDEXED = "indexed by a tensor"
WRITTEN = "written to by an index"


def index(walk: Walk, call: Call, a: Arguments) -> Any:
    """``x[i, :, j]``: a known list of indices moves labels, an unknown one freezes its dim."""
    source, given = a["self"], call.arguments["indices"]
    constants = [walk.constants.get(some) for some in given if some is not None]
    if all(c is not None and c.dim() == 1 and c.dtype != torch.bool for c in constants):
        picked = {
            dim: int(walk.constants[some][0])
            for dim, some in enumerate(given)
            if some is not None and walk.constants[some].numel() == 1
        }
        return move(walk, call, source, call.node.args[0], picked)  # type: ignore[arg-type]
    out = result_of(call.node)
    for to, dim in _places(source, a["indices"]).items():
        out.dims[to], out.zero[to] = source.dims[dim], source.zero[dim]
    walk.freeze(source, _indexed(a["indices"]), INDEXED)
    return out


def index_put(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """``x[i] = values``: what was not indexed is of one piece with the values."""
    source, values, indexed = a["self"], a["values"], _indexed(a["indices"])
    out = source.copy()
    shift = len(values.shape) - (len(source.shape) - len(indexed) + _wide(a["indices"]))
    walk.freeze(source, indexed, WRITTEN)
    tied = set()
    for to, dim in _places(source, a["indices"]).items():
        if to + shift >= 0 and values.shape[to + shift] > 1:
            tied.add(to + shift)
            _merge(walk, out, dim, values, to + shift)
        else:
            out.zero[dim] = out.zero[dim] and _is_zero(walk, call.arguments["values"])
    walk.freeze(values, [d for d in range(len(values.shape)) if d not in tied], WRITTEN)
    return out


def along(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """index_add, scatter and their like: ``dim`` is indexed, of the others each is one with the source's."""
    target, source, at = a["self"], a.get("source", a.get("src")), a.get("index")
    out = target.copy()
    axis = a["dim"] % max(1, len(target.shape))
    walk.freeze(target, [axis], WRITTEN)
    for dim in range(len(target.shape)):
        if dim == axis:
            continue
        if not isinstance(source, Labelled):
            out.zero[dim] = out.zero[dim] and _is_zero(walk, call.arguments.get("value"))
        elif source.shape and source.shape[dim] == target.shape[dim]:
            _merge(walk, out, dim, source, dim)
        else:
            walk.freeze(target, [dim], WRITTEN)
        if isinstance(at, Labelled) and len(at.shape) == len(target.shape) and at.dims[dim] is not None:
            walk.join([(target, dim), (at, dim)])
    if isinstance(source, Labelled) and source.shape:
        walk.freeze(source, [axis], WRITTEN)
        uneven = [d for d in range(len(source.shape)) if source.shape[d] != target.shape[d]]
        walk.freeze(source, uneven, WRITTEN)
    return out


def gather(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """gather and take_along_dim: as the index is shaped; dims that it runs through whole carry over."""
    source, at = a["self"], a["index"] if "index" in a else a["indices"]
    out = result_of(call.node)
    if a["dim"] is None or len(out.shape) != len(source.shape):
        walk.freeze(source, range(len(source.shape)), INDEXED)
        return out
    axis = a["dim"] % max(1, len(source.shape))
    walk.freeze(source, [axis], INDEXED)
    for dim in source.labelled():
        if dim == axis:
            continue
        if out.shape[dim] != source.shape[dim]:
            walk.freeze(source, [dim], INDEXED)
            continue
        if at.dims[dim] is not None:
            walk.join([(source, dim), (at, dim)])
        out.dims[dim], out.zero[dim] = source.dims[dim], source.zero[dim]
    return out


def scatter_part(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """slice_scatter and select_scatter: a part of ``dim`` is the source's."""
    target, source = a["self"], a["src"]
    out = target.copy()
    axis = a["dim"] % len(target.shape)
    whole = len(source.shape) == len(target.shape)
    if whole and target.dims[axis] is not None and source.dims[axis] is not None:
        size = target.shape[axis]
        part = range(size)[slice(a["start"], a["end"], a["step"])]
        walk.labels.tie(target.dims[axis][list(part)], source.dims[axis])  # type: ignore[index]
        out.zero[axis] = target.zero[axis] and source.zero[axis]
    else:
        walk.freeze(target, [axis], WRITTEN)
        walk.freeze(source, [axis] if whole else [], WRITTEN)
    for dim in range(len(target.shape)):
        if dim != axis:
            _merge(walk, out, dim, source, dim if whole or dim < axis else dim - 1)
    return out


def copied(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """``view.copy_(source)``, and so ``x[..., 2:5] = source``: entry by entry, the source broadcast."""
    target, source = a["self"], a["src"]
    out = target.copy()
    for dim in range(len(target.shape)):
        own = dim - len(target.shape) + len(source.shape)
        if own >= 0 and source.shape[own] > 1:
            _merge(walk, out, dim, source, own)
        else:
            out.zero[dim] = out.zero[dim] and _is_zero(walk, call.arguments["src"])
        if not out.zero[dim]:  # what the view is of would still be taken for zero there
            walk.freeze(out, [dim], "overwritten in part")
    return out


def filled(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """``view.fill_(number)``."""
    out = a["self"].copy()
    if not _is_zero(walk, call.arguments["value"]):
        walk.freeze(out, range(len(out.shape)), "overwritten in part")
    return out


def frozen(walk: Walk, call: Call, a: Arguments) -> Labelled:
    """masked_scatter: which entry is written depends on how many were before it."""
    walk.freeze_all([value for value in a.values() if isinstance(value, Labelled)], WRITTEN)
    return result_of(call.node)


def _merge(walk: Walk, out: Labelled, dim: int, source: Labelled, own: int) -> None:
    """Tie a dim of a result with that of what is written into it."""
    if out.dims[dim] is None and source.dims[own] is None:
        return
    out.dims[dim] = walk.join([(out, dim), (source, own)])
    out.zero[dim] = out.zero[dim] and source.zero[own]


def _is_zero(walk: Walk, value: Any) -> bool:
    """Whether a number, or a constant written into the forward, is zero."""
    while isinstance(value, fx.Node) and operator_of(Call(value)).kind == "same":
        value = value.args[0]
    value = walk.captured.constants.get(value.name) if isinstance(value, fx.Node) else value
    return value is not None and not bool(torch.as_tensor(value).any())


def _indexed(indices: Sequence[Any]) -> list[int]:
    """The dims that are indexed; a mask takes as many as it has."""
    found: list[int] = []
    dim = 0
    for at in indices:
        taken = len(at.shape) if at is not None and at.dtype == torch.bool else 1
        found += [] if at is None else range(dim, dim + taken)
        dim += taken
    return found


def _wide(indices: Sequence[Any]) -> int:
    """How many dims come in the place of those that are indexed."""
    return max(1 if at.dtype == torch.bool else len(at.shape) for at in indices if at is not None)


def _places(source: Labelled, indices: Sequence[Any]) -> dict[int, int]:
    """Return by dim of ``source[indices]`` the dim of ``source`` that it is, where it is one.

    What comes in the place of indexed dims stands there if they are together, else first.
    """
    indexed, wide = _indexed(indices), _wide(indices)
    together = indexed[-1] - indexed[0] == len(indexed) - 1
    rest = [dim for dim in range(len(source.shape)) if dim not in indexed]
    return {
        dim if together and dim < indexed[0] else position + wide: dim for position, dim in enumerate(rest)
    }


RULES = {
    aten.index: index,
    **dict.fromkeys([aten.index_put, aten._unsafe_index_put, aten._index_put_impl], index_put),
    **dict.fromkeys([aten.index_add, aten.index_copy, aten.index_fill, aten.index_reduce], along),
    **dict.fromkeys([aten.scatter, aten.scatter_add, aten.scatter_reduce], along),
    **dict.fromkeys([aten.gather, aten.take_along_dim], gather),
    **dict.fromkeys([aten.slice_scatter, aten.select_scatter], scatter_part),
    aten.copy: copied,
    aten.fill: filled,
    aten.masked_scatter: frozen,
}
