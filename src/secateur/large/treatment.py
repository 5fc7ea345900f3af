"""What is done to one block: a network of its own, whose calls are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.copying import copied
from secateur.errors import BudgetError, TargetError
from secateur.methods.distillation import distill
from secateur.methods.expert_scores import score_experts, weakest_experts
from secateur.methods.reconstruction import reconstruct
from secateur.methods.sparsegpt import sparsegpt
from secateur.pruning.budgets import NM, Uniform
from secateur.pruning.capabilities import name_of
from secateur.pruning.masks import Masks
from secateur.pruning.prune import prune
from secateur.pruning.targets import find_targets, matches
from secateur.pruning.unit_criteria import ActivationNorm
from secateur.structure.compact import compact
from secateur.structure.experts import find_experts
from secateur.structure.fewer_experts import remove_experts
from secateur.structure.layers import layer_view
from secateur.structure.tracing import trace
from secateur.structure.units import Structure

Named = dict[str, Any]


@dataclass(frozen=True)
class Treated:
    """A block as it has become.

    ``kept``: by weight that was thinned out, how many entries are not zero, of how many. ``units``: by group
    of units how many are left, of how many. ``errors``: of the proofs, the largest relative error of each.
    ``experts``: whether it has a mixture of them.
    """

    block: nn.Module
    kept: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    units: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    errors: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    experts: bool = False


@dataclass(frozen=True)
class Treatment:
    """The shares of units that go from a block, and how its weights are thinned out, in this order.

    ``experts``: the share of them that goes from each mixture, ranked ``by``; ``method``: a criterion that
    reads data, or ``sparsegpt`` itself; ``budget``: ``Uniform`` or ``NM``. ``include`` and ``exclude``:
    patterns of weights by their names in the whole network. ``recover``: how often the text is read to bring
    the block nearer to what it was, by all weights or adapters of a ``rank``.
    """

    experts: float = 0.0
    by: Any = "reap"
    units: float = 0.0
    refit: bool = True
    method: Any = None
    budget: Any = None
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    recover: int = 0
    rank: int | None = None

    def __bool__(self) -> bool:
        return bool(self.experts or self.units or self.method is not None)

    def __call__(self, path: str, block: nn.Module, calls: Iterable[Named], example: Named) -> Treated:
        """Return what a block becomes that is called so; it is changed."""
        found, masks = Treated(block), None
        dense = copied(block) if self.recover else block
        if self.experts:
            found = self._without_experts(found, calls, example)
        if self.units:
            found = self._without_units(found, calls, example)
        if self.method is not None:
            found, masks = self._thinned(path, found, calls)
        if self.recover:
            told = {"features": [""], "outputs": 0.0, "epochs": self.recover, "rank": self.rank}
            distill(found.block, dense, calls, masks=masks, **told)
        return found

    def _without_experts(self, found: Treated, calls: Iterable[Named], example: Named) -> Treated:
        block = found.block
        if not find_experts(block, (), kwargs=example):
            return found
        gone = weakest_experts(score_experts(block, calls, by=self.by), self.experts)
        small, proof = remove_experts(block, (), gone, kwargs=example)
        left = {name: (of - lost, of) for name, (lost, of) in proof.removed.items()}
        return replace(
            found,
            block=small,
            units={**found.units, **left},
            errors=(*found.errors, proof.max_error, proof.max_error_randomised),
            notes=(*found.notes, *proof.notes),
            experts=True,
        )

    def _without_units(self, found: Treated, calls: Iterable[Named], example: Named) -> Treated:
        dense, kept = found.block, dict[str, str]()
        while True:
            block = copied(dense)
            structure = trace(block, (), kwargs=example)
            names = [name for name in rankable(structure) if name not in kept]
            if not names:
                why = "; ".join(f"{name} stays: {reason}" for name, reason in kept.items())
                raise TargetError(
                    f"{type(block).__name__}: has no heads or neurons that can be removed{why and f': {why}'}"
                )
            masks = prune(
                block, ActivationNorm(), Uniform(self.units), data=calls, structure=structure, include=names
            )
            notes = list(masks.notes)
            if self.refit:
                refit = reconstruct(block, dense, structure, calls)
                notes += [f"not refitted: {name}: {why}" for name, why in refit.skipped.items()]
            small, proof = compact(block, (), kwargs=example, structure=structure)
            if proof.kept.keys() <= kept.keys():
                break
            kept |= proof.kept  # only masked: they had better stay whole
        return replace(
            found,
            block=small,
            units={**found.units, **masks.units},
            errors=(*found.errors, proof.max_error, proof.max_error_randomised),
            notes=(*found.notes, *notes, *proof.notes, *(f"stays: {n}: {why}" for n, why in kept.items())),
        )

    def _thinned(self, path: str, found: Treated, calls: Iterable[Named]) -> tuple[Treated, Masks | None]:
        block = found.block
        names = self._targets(path, block)
        if not names:
            return found, None
        if self.method is sparsegpt:
            masks = sparsegpt(block, self.budget, calls, include=names)
        else:
            masks = prune(block, self.method, self.budget, data=calls, include=names)
        kept = {f"{path}.{name}": (int(mask.sum()), mask.numel()) for name, mask in masks.items()}
        return replace(found, kept=kept, notes=(*found.notes, *masks.notes)), masks

    def _targets(self, path: str, block: nn.Module) -> list[str]:
        """Return the names in a block of the weights that are thinned out."""
        patterns = [[one] if isinstance(one, str) else one for one in (self.include, self.exclude)]
        found = []
        for name in find_targets(block):
            full = f"{path}.{name}"
            wanted, unwanted = (
                [] if given is None else [p for p in given if matches(full, p)] for given in patterns
            )
            if (patterns[0] is None or wanted) and not unwanted:
                found.append(name)
        return found


def check_method(method: Any, budget: Any) -> None:
    """Refuse what cannot be done block by block."""
    if not isinstance(budget, (Uniform, NM)):
        raise BudgetError(
            f"{name_of(budget)} compares over the whole network, and {name_of(method)} reads one block after "
            "the other; Uniform and NM are right"
        )


def rankable(structure: Structure) -> list[str]:
    """Return the groups of units of a block of which a layer reads what they put out."""
    paths = dict(structure.model.named_modules())
    return [
        name
        for name, group in structure.groups.items()
        if name not in structure.stays
        and any(
            part.reads and layer_view(paths[part.name.rpartition(".")[0]]) is not None
            for part in group.slices
        )
    ]
