"""The one rule for operators that only move data: run them on tags and see where the tags go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.graph.calls import Call
from secateur.structure.labels import Array
from secateur.structure.propagate import Labelled, Walk, plain_of

PADDING = "beside padding"
_MOST = 40_000_000


def move(
    walk: Walk, call: Call, source: Labelled, source_node: fx.Node, picked: dict[int, int] | None = None
) -> Any:
    """Return the value of a data-movement node whose tensor argument is ``source``.

    ``picked``: by dim the one index that is picked from it, counted from the end where it is negative; what
    stands between it and the end that it is counted from stays too.

    For each labelled dim the operator runs on a tensor of index + 1 along that dim. A dim whose tags
    vary along one output dim, alone there, carries its labels over; where dims meet or spread, cells
    say so; 0 is padding.
    """
    example = call.node.meta["val"]
    several = isinstance(example, (list, tuple))
    results = [plain_of(out) for out in (example if several else [example])]
    labelled = source.labelled()
    size = math.prod(source.shape) * max(1, len(labelled))
    if size > _MOST or not all(isinstance(r, Labelled) for r in results):
        walk.freeze(source, labelled, "too large to follow")
        return results if several else results[0]
    tags = {dim: _tagged(walk, call, source, source_node, dim) for dim in labelled}
    for index, result in enumerate(results):
        _place(walk, source, result, {d: t[index] for d, t in tags.items() if t is not None}, picked or {})
    for dim in (d for d, t in tags.items() if t is None):
        walk.freeze(source, [dim], f"{call.node.target} does not run on tags")
    _tie_parts(walk, source_node, source, tags)
    return results if several else results[0]


def _tagged(walk: Walk, call: Call, source: Labelled, source_node: fx.Node, dim: int) -> list[Array] | None:
    shape = [1] * len(source.shape)
    shape[dim] = source.shape[dim]
    tag = torch.arange(1, source.shape[dim] + 1).view(shape).expand(source.shape).contiguous()
    for dtype in (torch.int64, torch.float64):

        def stand_in(n: fx.Node, dtype: torch.dtype = dtype) -> Any:
            if n is source_node:
                return tag.to(dtype)
            if n in walk.constants:
                return walk.constants[n].cpu()
            value = walk.values.get(n)
            if isinstance(value, Labelled):
                return torch.zeros(value.shape, dtype=value.dtype)
            return value

        try:
            out = call.run(stand_in)
        except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
            continue
        outs = list(out) if isinstance(out, (list, tuple)) else [out]
        return [o.to(torch.int64).numpy() if isinstance(o, Tensor) else None for o in outs]  # type: ignore[misc]
    return None


def _place(
    walk: Walk, source: Labelled, result: Labelled, tags: dict[int, Array], picked: dict[int, int]
) -> None:
    """Give the dims of ``result`` their labels, from where the tags of each source dim varied."""
    along = {dim: _varying(tag) for dim, tag in tags.items()}
    for dim, outs in along.items():
        if not outs and result.shape.count(0) == 0:
            labels, at = source.dims[dim], picked.get(dim)
            assert labels is not None
            some = labels if at is None else labels[at:] if at < 0 else labels[: at + 1]
            walk.labels.freeze(some, "a fixed index is picked from it")
    pending = [dim for dim, outs in along.items() if outs]
    while pending:
        ins, outs = _component(pending, along)
        pending = [dim for dim in pending if dim not in ins]
        columns = {dim: _reduced(tags[dim], outs) for dim in ins}
        zero = all(source.zero[dim] for dim in ins)
        if len(ins) == 1 and len(outs) == 1:
            result.dims[outs[0]] = _carried(walk, source.dims[ins[0]], columns[ins[0]])  # type: ignore[arg-type]
            result.zero[outs[0]] = zero
            continue
        left = [_carried(walk, source.dims[dim], columns[dim]) for dim in ins]  # type: ignore[arg-type]
        grid = [result.shape[e] for e in outs]
        right = []
        for position, e in enumerate(outs):
            labels = walk.fresh(result.shape[e])
            result.dims[e] = labels
            result.zero[e] = zero
            shape = [1] * len(outs)
            shape[position] = result.shape[e]
            right.append(np.broadcast_to(labels.reshape(shape), grid).reshape(-1).copy())
        walk.labels.cell([column.reshape(-1) for column in left], right)


def _varying(tag: Array) -> list[int]:
    """Return the dims along which the tags differ, padding aside."""
    if tag.size == 0:
        return []
    holes = (tag == 0).any()
    high = np.where(tag == 0, np.iinfo(np.int64).max, tag) if holes else tag
    found = []
    for dim in range(tag.ndim):
        if tag.shape[dim] < 2:
            continue
        top, low = tag.max(dim), high.min(dim)
        if ((top != low) & (top > 0)).any():
            found.append(dim)
    return found


def _component(pending: list[int], along: dict[int, list[int]]) -> tuple[list[int], list[int]]:
    ins, outs = [pending[0]], set(along[pending[0]])
    while True:
        more = [dim for dim in pending if dim not in ins and outs & set(along[dim])]
        if not more:
            return ins, sorted(outs)
        ins += more
        for dim in more:
            outs |= set(along[dim])


def _reduced(tag: Array, outs: list[int]) -> Array:
    rest = tuple(d for d in range(tag.ndim) if d not in outs)
    return tag.max(axis=rest) if rest else tag


def _carried(walk: Walk, labels: Array, tags: Array) -> Array:
    """Return the labels under the tags; where there is none, padding: new labels that stay."""
    flat = tags.reshape(-1)
    out = labels[np.maximum(flat, 1) - 1].copy()
    holes = flat == 0
    if holes.any():
        padding = walk.fresh(int(holes.sum()))
        walk.labels.freeze(padding, PADDING)
        out[holes] = padding
    return out.reshape(tags.shape)


def _tie_parts(walk: Walk, node: fx.Node, source: Labelled, tags: dict[int, list[Array] | None]) -> None:
    """Tie equal parts of a dim, k-th to k-th: chunks must stay equal."""
    for dim, outs in tags.items():
        labels = source.dims[dim]
        for tag in outs or []:
            along = _varying(tag) if tag is not None else []
            if len(along) != 1 or labels is None:
                continue
            picked = _reduced(tag, along)
            if (picked == 0).any() or len(picked) == len(labels):
                continue
            if len(np.unique(picked)) < len(picked) or not (np.diff(picked) == 1).all():
                continue
            known = walk.parts.setdefault((node, dim), [])
            for start, other in known:
                last = start + len(other) - 1
                if len(other) == len(picked) and (picked[0] > last or picked[-1] < start):
                    walk.labels.tie(labels[picked - 1], other)
                    break
            known.append((int(picked[0]), labels[picked - 1]))
