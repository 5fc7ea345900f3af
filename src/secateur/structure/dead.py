"""Which units can go without a change of the function: dead ones, unread ones, constant ones.

A unit whose slices are all zero is masked. One that nobody reads (all columns zero) or that is
always zero (its rows are zero, whatever the gates beside it) is dead: the rest of its slices can be
zeroed, which may kill others, so this runs to a fixpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.graph.capture import tensor_of
from secateur.graph.draws import as_dtype, randomise, redrawn
from secateur.graph.run import Bound
from secateur.structure.constancy import Constancy
from secateur.structure.labels import Array
from secateur.structure.propagate import Read
from secateur.structure.runs import Wide
from secateur.structure.surgery import mask_units
from secateur.structure.units import Structure, all_zero

_DRAWS, _LOOKS = 6, 40


@dataclass(frozen=True)
class ConstantInput:
    """What a unit always puts out where it is read: ``values`` at ``indices`` of a layer's inputs."""

    read: Read
    indices: Array
    values: Tensor


@dataclass
class Found:
    """The units that go, by group; the constants of those that are not zero, by (group, unit); which
    dead ones stay, and why."""

    pruned: dict[str, Array]
    constants: dict[tuple[str, int], list[ConstantInput]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return sum(int(units.sum()) for units in self.pruned.values())

    def constants_of(self, pruned: Mapping[str, Array]) -> list[list[ConstantInput]]:
        """Return the constants of those of the units ``pruned`` that have one."""
        return [own for (name, unit), own in self.constants.items() if name in pruned and pruned[name][unit]]


def find_dead(work: nn.Module, structure: Structure) -> Found:
    """Find every unit of ``work`` (a copy, changed in place) that can go, zero all its slices and fold
    constant outputs into the biases that read them."""
    found = Found({name: np.zeros(len(group), dtype=bool) for name, group in structure.groups.items()})
    readers = readers_of(structure)
    tensor = partial(tensor_of, work)
    while True:
        before = found.number
        for name, group in structure.groups.items():
            masked = all_zero(group, tensor)
            unread = all_zero(group, tensor, lambda part: part.reads) if readers[name] else False
            found.pruned[name] |= masked | unread
        mask_units(work, structure, found.pruned)
        if found.number == before:
            if not _constants(work, structure, readers, found):
                break
            mask_units(work, structure, found.pruned)
    for name, units in found.pruned.items():
        if units.all():
            units[0] = False
            found.kept[name] = "every unit is dead; one stays, so that no dim is empty"
    return found


def _scales(work: nn.Module, name: str) -> bool:
    """Whether zeros in a tensor can make a unit constant: weights and norms' scales, not biases."""
    return tensor_of(work, name).dim() > 1 or name.endswith(
        ("weight", "weight_g", "original0", "scale", "gamma")
    )


def summed_elsewhere(structure: Structure) -> dict[str, bool]:
    """Return by group whether its units are summed over other than by the columns of its slices."""
    classes = structure.classes
    elsewhere = np.zeros(len(classes.frozen), dtype=bool)
    for labels in structure.walk.consumed:
        elsewhere[classes.of[labels]] = True
    return {
        name: bool(elsewhere[structure.classes_of(group.slices[0])].any())
        for name, group in structure.groups.items()
    }


def readers_of(structure: Structure) -> dict[str, list[Read]]:
    """Return by group the places that read its units, where those are all that read them."""
    walk, elsewhere = structure.walk, summed_elsewhere(structure)
    by_place: dict[tuple[str, int], list[Read]] = {}
    for read in walk.reads:
        by_place.setdefault((read.weight, read.weight_dim), []).append(read)
    readers: dict[str, list[Read]] = {}
    for name, group in structure.groups.items():
        parts = [part for part in group.slices if part.reads]
        places = [(part.name, part.dim) for part in parts if not elsewhere[name]]
        known = by_place.keys() >= set(places)
        readers[name] = [read for place in places for read in by_place[place]] if known else []
    return readers


def _constants(work: nn.Module, structure: Structure, readers: dict[str, list[Read]], found: Found) -> bool:
    """Find units whose output is constant, fold what is not zero, and mark them; say if any."""
    candidates: dict[str, Array] = {}
    for name, group in structure.groups.items():
        some = np.zeros(len(group), dtype=bool)
        for part in group.slices:
            if not part.reads and part.masked and readers[name] and _scales(work, part.name):
                some |= all_zero(group, partial(tensor_of, work), lambda p, part=part: p is part)
        some &= ~found.pruned[name]
        if some.any():
            candidates[name] = some
    if not candidates or structure.captured.refused:  # what ran once need not run on other numbers
        return False
    reads: dict[Read, Array] = {}
    for name, some in candidates.items():
        for read in readers[name]:
            own = structure.groups[name].read_by(read).indices[some].reshape(-1)
            reads[read] = np.union1d(reads.get(read, own), own)
    seen = _observed(work, structure, reads)
    if seen is None:
        return False
    values, constant = seen
    once = {read.weight: sum(r.weight == read.weight for r in structure.walk.reads) == 1 for read in reads}
    changed = False
    for name, some in candidates.items():
        group = structure.groups[name]
        fit = some.copy()
        level = False
        for read in readers[name]:
            part = group.read_by(read)
            fit &= constant[read][part.indices].all(1)
        fit_zero = fit.copy()
        for read in readers[name]:
            part = group.read_by(read)
            zero = (values[read].numpy()[part.indices] == 0).all(1)
            fit_zero &= zero
            foldable = read.bias is not None and not read.padded and once[read.weight]
            level |= bool((fit & ~zero).any()) and not foldable
            if not foldable:
                fit &= zero
        if level:
            found.kept[name] = "constant units that no bias can take up (padding, or no bias)"
        if (fit & ~fit_zero).any():
            constancy = Constancy(work, structure, group)
            held = np.logical_and.reduce([constancy.at(read.operand) for read in readers[name]])
            if (fit & ~fit_zero & ~held).any():
                what = ", ".join(sorted(constancy.blocked)) or "something"
                found.kept[name] = f"constant units behind {what}: other sizes of input may give other ones"
            fit &= fit_zero | held
        for unit in np.flatnonzero(fit & ~fit_zero).tolist():
            own = [
                ConstantInput(read, indices, values[read][torch.from_numpy(indices)])
                for read in readers[name]
                for indices in [group.read_by(read).indices[unit]]
            ]
            found.constants[name, unit] = own
            fold_constants(work, own)
        if fit.any():
            found.pruned[name] |= fit
            changed = True
    return changed


@torch.no_grad()
def fold_constants(model: nn.Module, constants: Iterable[ConstantInput]) -> None:
    """Add to the biases of a model, rounded once, what the constants make of its layers' outputs."""
    totals: dict[str, Tensor] = {}
    for constant in constants:
        weight = tensor_of(model, constant.read.weight)
        index = torch.from_numpy(constant.indices).to(weight.device)
        columns = weight.index_select(constant.read.weight_dim, index).movedim(constant.read.weight_dim, 0)
        sums = columns.double().reshape(len(index), columns.shape[1], -1).sum(-1)
        name = str(constant.read.bias)
        totals[name] = totals.get(name, 0) + constant.values.to(sums) @ sums
    for name, total in totals.items():
        bias = tensor_of(model, name)
        bias.copy_(bias.double() + total)


def _observed(
    work: nn.Module, structure: Structure, reads: Mapping[Read, Array]
) -> tuple[dict[Read, Tensor], dict[Read, Array]] | None:
    """Look at the operands of ``reads`` in float64, where the graph runs in it, else in its own dtype; None
    where it bears no other numbers than the example's."""
    for dtype in (torch.float64, None):
        try:
            return _watched(work, structure, reads, dtype)
        except Exception:  # indices, lengths: whatever operators raise on numbers that they do not expect
            continue
    return None


@torch.no_grad()
def _watched(
    work: nn.Module, structure: Structure, reads: Mapping[Read, Array], dtype: torch.dtype | None
) -> tuple[dict[Read, Tensor], dict[Read, Array]]:
    """Run the graph with the weights as they are and with surviving ones randomised, and return for
    each read its operand's value by channel, and whether it was the same everywhere in every run; as long
    as some of the channels that are asked for were."""
    example: Any = structure.captured.args, structure.captured.kwargs
    example = example if dtype is None else as_dtype(example, dtype)
    values: dict[Read, Tensor] = {}
    constant: dict[Read, Array] = {}
    generator = torch.Generator().manual_seed(1)
    before: dict[Read, Tensor] = {}
    draws = _DRAWS
    draw = 0
    while draw < draws:
        state = copied(work) if draw else copied(work, shared=work.parameters())
        if draw:
            randomise(state, draw)
        # The same weights on two inputs: one position alone is the same everywhere.
        for look in range(2):
            args, named = example if draw == look == 0 else redrawn(example, generator)
            with Wide(dtype) if dtype else nullcontext():
                seen = Bound(structure.captured, state).seen(args, named, {read.operand for read in reads})
            for read in reads:
                operand = seen[read.operand].movedim(read.dim, 0)
                flat = operand.reshape(operand.shape[0], -1).double().cpu()
                first = flat[:, 0] if look == 0 else before[read]
                same = (flat == first[:, None]).all(1).numpy()
                if draw == look == 0:
                    values[read], constant[read] = first, same
                    if flat.shape[1] < _LOOKS // _DRAWS:
                        draws = _LOOKS  # a relu may be at rest by chance on a few positions
                # What is zero must stay zero whatever the surviving weights are.
                zero = (values[read] != 0) | (flat == 0).all(1)
                constant[read] &= same & zero.numpy()
                before[read] = first
            if look and not any(constant[read][own].any() for read, own in reads.items()):
                return values, constant
        draw += 1
    return values, constant
