"""Values whose batch is not in front: what is moved, split, joined and worked on until it is again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from secateur.deploy.program.emitting import Lowering, Refused, Turned, Value

Groups = tuple[tuple[int, ...], ...]


def through(made: Lowering, x: Value, last: int, work: Callable[[Value], Value]) -> Value:
    """Do to a value what works on its ``last`` dims, or on every entry (0): where its batch is not in front
    that is done to the source, whose last dims are brought to be the same ones."""
    if not isinstance(x, Turned):
        return work(x)
    dims, ends = len(x.source.shape), x.groups[len(x.groups) - last :]
    if ends != tuple((dim,) for dim in range(dims - last, dims)):
        x = _ending(made, x, last)
    return x.of(work(x.source))


def _ending(made: Lowering, x: Turned, last: int) -> Turned:
    """Return a value whose last dims are those of its source, each one dim there."""
    ends = [dim for group in x.groups[len(x.groups) - last :] for dim in group]
    if 0 in ends:
        raise Refused("works along the batch")
    order = [*(dim for dim in range(len(x.source.shape)) if dim not in ends), *ends]
    source = permuted(made, x.source, order)
    front = len(order) - len(ends)
    shape = (*source.shape[:front], *x.shape[len(x.shape) - last :])
    groups = [tuple(order.index(dim) for dim in group) for group in x.groups[: len(x.groups) - last]]
    groups += [(front + at,) for at in range(last)]
    return replace(x, source=reshaped(made, source, shape), groups=tuple(groups))


def along(x: Value, dim: int, work: Callable[[Value, int], Value]) -> Value:
    """Do to a value what works along one dim."""
    dim %= len(x.shape)
    if not isinstance(x, Turned):
        return work(x, dim)
    if len(x.groups[dim]) != 1:
        raise Refused("moves the batch")
    return x.of(work(x.source, x.groups[dim][0]))


def permuted(made: Lowering, x: Value, dims: list[int]) -> Value:
    """Return a value with its dims in another order, which is only noted while the batch is not in front."""
    source, groups = _opened(x)
    return settled(made, source, tuple(groups[dim] for dim in dims))


def reshaped(made: Lowering, x: Value, shape: tuple[int, ...]) -> Value:
    """Return a value in another shape; row by row where the batch is and stays in front."""
    if x.shape == shape:
        return x
    front = bool(shape) and bool(shape[0]) and shape[0] % made.batch == 0
    if front and not isinstance(x, Turned):
        return made.emit("reshape", [x], shape)
    source, groups = _opened(x)
    atoms = [(source.shape[dim], dim) for group in groups for dim in group]
    parts, wanted = _split(atoms, shape)
    order = sorted(range(len(parts)), key=lambda number: (parts[number][1], number))
    sizes = tuple(parts[number][0] for number in order)
    source = source if sizes == source.shape else made.emit("reshape", [source], sizes)
    return settled(made, source, tuple(tuple(order.index(n) for n in group) for group in wanted))


def settled(made: Lowering, source: Value, groups: Groups) -> Value:
    """Return a value whose dims are these groups of dims of ``source``: a node's, if the batch leads."""
    order = [dim for group in groups for dim in group]
    shape = tuple(math.prod(source.shape[dim] for dim in group) for group in groups)
    if not order or order[0] != 0:
        return Turned(source.name, shape, source.dtype, source=source, groups=groups)
    if order != sorted(order):
        moved = [source.shape[dim] for dim in order]
        source = made.emit("permute", [source], moved, dims=order)
    return source if source.shape == shape else made.emit("reshape", [source], shape)


def _opened(x: Value) -> tuple[Value, Groups]:
    if isinstance(x, Turned):
        return x.source, x.groups
    return x, tuple((dim,) for dim in range(len(x.shape)))


def _split(
    atoms: list[tuple[int, int]], shape: tuple[int, ...]
) -> tuple[list[tuple[int, float]], list[list[int]]]:
    """Cut (size, dim) pairs so that each size of ``shape`` is the product of a run of them. Return the
    pieces, each with its dim, and the runs. A new dim of one entry comes behind the first of the source."""
    left, parts, wanted = [atom for atom in atoms if atom[0] != 1], [], []
    for size in shape:
        run, lacking = [], size
        if size == 1:
            run.append(len(parts))
            parts.append((1, 0.5))
        while lacking > 1:
            have, dim = left.pop(0) if left else (0, 0)
            part = math.gcd(have, lacking) if have else 0
            if not have or part != min(have, lacking):
                raise Refused("moves the batch")
            if have > part:
                left.insert(0, (have // part, dim))
            run.append(len(parts))
            parts.append((part, dim))
            lacking //= part
        wanted.append(run)
    return parts, wanted
