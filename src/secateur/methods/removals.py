"""The removals of a greedy search between two compactions: which units go next, by any measure of a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from secateur.methods.ablation import Ablation
from secateur.methods.elimination import Reconstruction
from secateur.methods.tries import Tries
from secateur.pruning.unit_criteria import unit_scores
from secateur.running import denormals_flushed
from secateur.structure.labels import Array
from secateur.structure.surgery import mask_units
from secateur.structure.units import Structure


class Way(Protocol):
    """What a search says of how it goes about it: see ``secateur.Greedy``."""

    @property
    def criterion(self) -> Any: ...
    @property
    def scope(self) -> str: ...
    @property
    def at_once(self) -> int: ...
    @property
    def min_kept(self) -> int: ...
    @property
    def memory(self) -> int: ...


@dataclass(frozen=True)
class Removal:
    """A unit that went: ``unit`` is its number in ``group`` in the network given. ``score`` and
    ``loss``: on the data without it; for the output criterion, the change and no score."""

    group: str
    unit: int
    score: float | None
    loss: float


@dataclass
class Stage:
    """The removals between two compactions: masks ``model`` as it goes; ``pruned`` says what is gone."""

    model: nn.Module
    structure: Structure
    method: Way
    tries: Tries
    sizes: Mapping[str, int]
    changes: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = self.structure.groups.items()
        self.pruned = {name: np.zeros(len(group), dtype=bool) for name, group in groups}
        example = self.tries.chunks[0].example
        self.ablation = Ablation(self.model, self.structure, example, self.method.memory)

    def next(self) -> list[Removal]:
        """Return the units that go next; none where every group is down to what it keeps."""
        spare = {name: int((~units).sum()) - self.method.min_kept for name, units in self.pruned.items()}
        shortcut = self.method.criterion == "output"  # which tries nothing in any other way
        possible = self.ablation.ways if shortcut else spare
        names = [name for name, number in spare.items() if number > 0 and name in possible]
        if self.method.scope == "layer" and names:
            names = [max(names, key=lambda n: (spare[n] + self.method.min_kept) / self.sizes.get(n, 1))]
        way = {"score": self._scored, "output": self._changed, "reconstruction": self._refitted}
        criterion = self.method.criterion
        tried = way[criterion](names) if isinstance(criterion, str) else self._ranked(names)
        better = self.tries.judge.oriented
        tried.sort(key=lambda one: (-better(one.score or 0.0), one.loss))  # stable: ties go by their order
        taken: list[Removal] = []
        for one in tried:
            if len(taken) < self.method.at_once and spare[one.group] > 0:
                spare[one.group] -= 1
                taken.append(one)
        return taken

    def remove(self, units: Sequence[Removal]) -> None:
        for one in units:
            self.pruned[one.group][one.unit] = True
        mask_units(self.model, self.structure, self.pruned)

    def _scored(self, names: Sequence[str]) -> list[Removal]:
        """Every unit that is left, with the score and the loss of the network without it."""
        left = {name: np.flatnonzero(~self.pruned[name]) for name in names}
        sums: dict[str, Array] = {}
        for chunk in self.tries.chunks:
            with denormals_flushed():
                for name, units, outputs in self.ablation.outputs(chunk.example, left):
                    new = chunk.judged(outputs, len(units), self.tries.judge)
                    sums.setdefault(name, np.zeros((len(new), len(self.pruned[name]))))[:, units] += new
        found = {
            name: self.tries.judge.figures(sums[name][:, left[name]], self.tries.number) for name in names
        }
        return [
            Removal(name, int(unit), float(score), float(loss))
            for name, units in left.items()
            for unit, score, loss in zip(units, *found[name], strict=True)
        ]

    def _changed(self, names: Sequence[str]) -> list[Removal]:
        """Every unit that is left, with the change of what reads its group once it has gone too."""
        found = []
        for name in names:
            if name not in self.changes:
                self.changes[name] = self._products(name)
            products, pruned = self.changes[name], self.pruned[name]
            now = products[pruned][:, pruned].sum()
            more = products.diagonal() + 2 * products[:, pruned].sum(1)
            found += [Removal(name, int(u), None, float(now + more[u])) for u in np.flatnonzero(~pruned)]
        return found

    def _refitted(self, names: Sequence[str]) -> list[Removal]:
        """Every unit that is left, with the error that its group's readers keep once it has gone too."""
        new = [name for name in names if name not in self.changes]
        if new:
            part = replace(self.structure, groups={name: self.structure.groups[name] for name in new})
            scores = Reconstruction()(part, self.tries.pairs)
            self.changes |= {name: score.numpy() for name, score in scores.items()}
        return [
            Removal(name, int(unit), None, float(self.changes[name][unit]))
            for name in names
            for unit in np.flatnonzero(~self.pruned[name])
        ]

    def _ranked(self, names: Sequence[str]) -> list[Removal]:
        """Every unit that is left, with its score by a criterion as the loss of removing it."""
        part = replace(self.structure, groups={name: self.structure.groups[name] for name in names})
        scores = unit_scores(part, self.method.criterion, self.tries.pairs, None) if names else {}
        return [
            Removal(name, int(unit), None, float(scores[name][unit]))
            for name in names
            for unit in np.flatnonzero(~self.pruned[name])
        ]

    def _products(self, name: str) -> Array:
        """Inner products of what any two units of a group make of the outputs that read it, relative
        to the squares of these outputs and summed over the layers that read first."""
        units = np.arange(len(self.pruned[name]))
        products: dict[int, Array] = {}
        squares: dict[int, float] = {}
        for chunk in self.tries.chunks:
            for reader, outputs, parts in self.ablation.changes(chunk.example, name, units):
                products[reader] = products.get(reader, 0.0) + (parts @ parts.T).double().cpu().numpy()
                squares[reader] = squares.get(reader, 0.0) + float(outputs.double().square().sum())
        return sum(products[reader] / max(squares[reader], 1e-300) for reader in products)  # type: ignore[return-value]
