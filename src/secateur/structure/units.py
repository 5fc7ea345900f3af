"""The units of a network, what each consists of, and what is protected and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.graph.capture import Captured, capture
from secateur.structure.labels import Array, Classes
from secateur.structure.propagate import Read, Walk
from secateur.structure.rules.table import apply
from secateur.text import table

HEADS = ("whole", "dims", "queries")
FORMS = ("modules", "graph")
COMPLEX = "its numbers are complex"
TOGETHER = "all of its indices can only go together"


@dataclass(frozen=True)
class Slice:
    """What the units of a group have in one dim of one tensor: row i of ``indices`` is unit i's.

    ``reads``: the dim runs over inputs (columns of a consumer), not over what is made. ``masked``:
    masking a unit zeroes it (the direction of a weight-normed layer and buffers keep their values).
    """

    name: str
    dim: int
    indices: Array
    reads: bool = False
    masked: bool = True


@dataclass(frozen=True)
class Group:
    """Units of one kind, which can go one by one: the channels that two layers share, say.

    ``parameters`` and ``macs`` are what one unit carries (MACs on the example inputs); units that
    share an entry (a row and a column of one weight) both count it.
    """

    name: str
    slices: tuple[Slice, ...]
    parameters: int
    macs: float

    def __len__(self) -> int:
        return len(self.slices[0].indices)

    def read_by(self, read: Read) -> Slice:
        """Return the slice that one of the group's readers reads."""
        place = read.weight, read.weight_dim
        return next(part for part in self.slices if (part.name, part.dim) == place)


def all_zero(
    group: Group, tensor: Callable[[str], Tensor | None], wanted: Callable[[Slice], bool] | None = None
) -> Array:
    """Return by unit whether every entry of its wanted slices (default: the masked ones) is zero in the
    tensors by name; no unit's is in a tensor that is None."""
    zero = np.ones(len(group), dtype=bool)
    for part in group.slices:
        if not (part.masked if wanted is None else wanted(part)):
            continue
        entries = tensor(part.name)
        if entries is None:
            return np.zeros(len(group), dtype=bool)
        nonzero = entries.detach().movedim(part.dim, 0) != 0
        zero &= ~nonzero.reshape(len(nonzero), -1).any(1).cpu().numpy()[part.indices].any(1)
    return zero


@dataclass(frozen=True)
class Protected:
    """A dim of which some indices stay whatever is pruned, and why."""

    name: str
    dim: int
    kept: int
    size: int
    reason: str


@dataclass(frozen=True)
class Structure:
    """The dependency groups of a model and its protected dims; made by ``trace``.

    Printed it is a table of the groups, and of what stays and why.

    Attributes:
        model: the network that was traced, without wrappers.
        groups: by name the ``Group``, with its ``slices``: the dims and indices that each unit has in a
            tensor.
        protected: dims of which some indices stay whatever is pruned: ``name``, ``dim``, ``kept`` of
            ``size``, and the ``reason``.
        captured: the graph, and in ``captured.notes`` what holds for the example alone.
        walk: what the rules found in it.
        classes: which indices can only go together.
        look: what tries which groups can go; ``stays`` are then by name the groups whose removal breaks the
            forward, which has a size written into it that no attribute explains, and how. ``prune`` leaves
            them alone; a graph can lose them too.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> structure = sc.trace(net, torch.ones(1, 8))
        >>> for part in structure.groups["0 -> 2"].slices:
        ...     print(part.name, part.dim, "reads" if part.reads else "makes")
        0.weight 0 makes
        0.bias 0 makes
        2.weight 1 reads
    """

    model: nn.Module
    groups: Mapping[str, Group]
    protected: tuple[Protected, ...]
    captured: Captured = field(repr=False)
    walk: Walk = field(repr=False)
    classes: Classes = field(repr=False)
    look: Callable[[Structure], Mapping[str, str]] | None = field(default=None, repr=False)

    @cached_property
    def stays(self) -> Mapping[str, str]:
        """Tried when it is first asked for, and kept."""
        return {} if self.look is None else self.look(self)

    @property
    def known_to_stay(self) -> Mapping[str, str]:
        """``stays`` where somebody has asked for it, else nothing."""
        return vars(self).get("stays", {})

    @property
    def removable(self) -> dict[str, Group]:
        """The groups that ``compact`` can take out of the modules."""
        return {name: group for name, group in self.groups.items() if name not in self.stays}

    def __len__(self) -> int:
        return len(self.groups)

    def classes_of(self, part: Slice) -> Array:
        """Return the class of each label that units have in a slice, as its indices are."""
        labels = self.walk.parameters[part.name].dims[part.dim]
        assert labels is not None
        return self.classes.of[labels[part.indices]]

    def __repr__(self) -> str:
        rows = [("group", "units", "parameters a unit", "MACs a unit", "in")]
        for group in self.groups.values():
            parts = len({s.name for s in group.slices})
            counts = f"{len(group):,}", f"{group.parameters:,}", f"{group.macs:,.0f}"
            rows.append((group.name, *counts, f"{parts} tensors"))
        lines = list(table(rows, words=1))
        if self.protected:
            lines.append("protected:")
            stay = [("", "dim", "stays", "because")]
            stay += [(p.name, str(p.dim), f"{p.kept} of {p.size}", p.reason) for p in self.protected]
            lines += table(stay, words=1)
        lines += [f"stays, but in form='graph': {name}: {reason}" for name, reason in self.stays.items()]
        lines += [f"note: {note}" for note in self.captured.notes]
        return "\n".join(lines)


def analyse(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    heads: str = "whole",
    streams: bool = False,
    form: str = FORMS[0],
) -> Structure:
    """Do what ``secateur.trace`` does, but for trying what can be removed."""
    if heads not in HEADS:
        raise ModelError(f"heads is {heads!r}; it is 'whole', 'dims' or 'queries'")
    if not isinstance(streams, bool):
        raise ModelError(f"streams is {streams!r}; it is True or False")
    if form not in FORMS:
        raise ModelError(f"form is {form!r}; it is 'modules' or 'graph'")
    captured = capture(model, example_inputs, kwargs, dynamic_shapes)
    walk = Walk(captured, apply, streams, graph=form == "graph")
    walk.run()
    classes = walk.labels.solve(heads)
    groups, alone = _groups(walk, classes)
    return Structure(captured.model, groups, _protected(walk, classes, alone), captured, walk, classes)


def _groups(walk: Walk, classes: Classes) -> tuple[dict[str, Group], set[int]]:
    """Return the groups by name, and the classes that are protected because they are a whole dim."""
    places: list[tuple[str, int]] = []
    parts: list[tuple[Array, Array, Array]] = []
    for name, value in walk.parameters.items():
        for dim, labels in value.labels():
            own = classes.of[labels]
            live = ~classes.frozen[own]
            if live.any():
                places.append((name, dim))
                number = int(live.sum())
                parts.append((own[live], np.full(number, len(places) - 1), np.flatnonzero(live)))
    if not parts:
        return {}, set()
    own, place, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((index, place, own))
    own, place, index = own[order], place[order], index[order]
    starts = np.flatnonzero(np.r_[True, (own[1:] != own[:-1])])
    ends = np.r_[starts[1:], len(own)]
    by_signature: dict[tuple[tuple[int, ...], tuple[int, ...]], list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        used, counts = np.unique(place[start:end], return_counts=True)
        by_signature.setdefault((tuple(used.tolist()), tuple(counts.tolist())), []).append((start, end))
    groups: dict[str, Group] = {}
    alone: set[int] = set()
    repeated = {int(unit) for labels in walk.repeated for unit in classes.of[labels]}
    for (used, counts), units in by_signature.items():
        sizes = [walk.parameters[places[p][0]].shape[places[p][1]] for p in used]
        if any(count == size for count, size in zip(counts, sizes, strict=True)):
            alone |= {int(own[start]) for start, _ in units}
            continue
        rows = np.stack([index[start:end] for start, end in units])
        rows = rows[np.lexsort(rows.T[::-1])]
        group = _group(walk, [places[p] for p in used], counts, rows)
        only_read = len(group.slices) == 1 and group.slices[0].reads
        if not any(part.masked for part in group.slices):
            continue  # tables of constants alone: nothing would get smaller
        if only_read and int(own[units[0][0]]) in repeated:
            continue  # columns that read one number many times: nothing makes such units
        name = group.name
        while name in groups:
            name += "'"
        groups[name] = replace(group, name=name)
    return groups, alone


def _group(walk: Walk, places: list[tuple[str, int]], counts: tuple[int, ...], rows: Array) -> Group:
    slices = []
    parameters, macs, at = 0, 0.0, 0
    for (name, dim), count in zip(places, counts, strict=True):
        value = walk.parameters[name]
        buffer = name in walk.captured.buffers
        masked = not buffer and (name, dim) not in walk.unmasked
        reads = (name, dim) in walk.contracted
        slices.append(Slice(name, dim, rows[:, at : at + count], reads, masked))
        at += count
        share = count / value.shape[dim]
        parameters += 0 if buffer else round(share * float(np.prod(value.shape)))
        macs += share * walk.macs.get(name, 0.0)
    return Group(_name(walk, slices), tuple(slices), parameters, macs)


def _name(walk: Walk, slices: list[Slice]) -> str:
    matrices = [s for s in slices if len(walk.parameters[s.name].shape) > 1] or slices
    makers = list(dict.fromkeys(_module(s.name) for s in matrices if not s.reads))
    readers = list(dict.fromkeys(_module(s.name) for s in matrices if s.reads))
    text = _some(makers or [_module(s.name) for s in slices if not s.reads])
    return f"{text} -> {_some(readers)}" if readers else text


def _module(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    return path if leaf in ("weight", "bias") and path else name


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "")


def _protected(walk: Walk, classes: Classes, alone: set[int]) -> tuple[Protected, ...]:
    found = []
    for name, value in walk.parameters.items():
        if name in walk.captured.buffers or len(value.shape) < 2:
            continue
        if value.dtype.is_complex:
            found += [Protected(name, dim, size, size, COMPLEX) for dim, size in enumerate(value.shape)]
        for dim, labels in value.labels():
            own = classes.of[labels]
            stays = classes.frozen[own] | np.isin(own, list(alone))
            if not stays.any():
                continue
            first = int(own[stays][0])
            reason = classes.reasons.get(first, TOGETHER if first in alone else "")
            if reason:
                found.append(Protected(name, dim, int(stays.sum()), value.shape[dim], reason))
    return tuple(found)
