"""What a trial does, one action after the other: a plan's steps laid out."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from torch import nn

from secateur.errors import SecateurWarning
from secateur.experiments.choices import make
from secateur.experiments.compression import Pack, Share
from secateur.experiments.dense import scratch_model
from secateur.experiments.recipe import Plan
from secateur.experiments.searches import Anneal, GreedyCut, Select
from secateur.experiments.specs import (
    AnnealSpec,
    CompactSpec,
    GreedySpec,
    PackSpec,
    PruneSpec,
    PruneToSpec,
    RefitSpec,
    ScratchSpec,
    SelectionSpec,
    ShareSpec,
)
from secateur.experiments.steps import Step, make_schedule
from secateur.experiments.work import Work
from secateur.methods.constraints import prune_to
from secateur.methods.reconstruction import reconstruct
from secateur.pruning.budgets import Global
from secateur.pruning.prune import Block, prune
from secateur.pruning.targets import find_targets
from secateur.structure.compact import compact
from secateur.structure.units import trace
from secateur.training.evaluate import loss_of
from secateur.training.settings import Training


class Action(Protocol):
    """One thing that a trial does. ``kind``: what its seconds, but for training, count as."""

    kind: ClassVar[str]

    def run(self, work: Work) -> None: ...


@dataclass(frozen=True)
class Cut:
    """One pruning of a ``prune`` step, at the step's budget ``level``."""

    step: str
    spec: PruneSpec
    level: int
    kind: ClassVar[str] = "prune"

    def run(self, work: Work) -> None:
        spec, state = self.spec, work.state
        budget = make_schedule(spec)[self.level]
        asked, notes = getattr(budget, "sparsity", None), []
        if spec.relative_to == "dense":
            budget, notes = _of_dense(budget, work, spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecateurWarning)  # the masks' notes say the same in the report
            state.masks = prune(
                state.model,
                make("criterion", spec.criterion),
                budget,
                shrinkage=None if spec.units else make("shrinkage", spec.shrinkage),
                granularity=None if spec.block is None else Block(*spec.block),
                data=work.calibration(spec.calibration),
                loss=loss_of,
                include=spec.include,
                exclude=spec.exclude,
                masks=state.masks,
                structure=trace(state.model, work.example()) if spec.units else None,
                round_to=spec.round_to,
                min_kept=spec.min_kept,
            )
        of_all = spec.relative_to == "dense" or not (spec.units or state.structured)
        state.requested = asked if of_all and isinstance(asked, float) else None
        state.structured = state.structured or spec.units
        units = [f"{name}: {kept} of {of} units left" for name, (kept, of) in state.masks.units.items()]
        state.notes[self.step] = [*state.masks.notes, *units, *notes]
        work.cut(copy.deepcopy(state.model))


@dataclass(frozen=True)
class Refit:
    """The layers that read removed units fitted to the dense network's outputs."""

    step: str
    spec: RefitSpec
    kind: ClassVar[str] = "refit"

    def run(self, work: Work) -> None:
        model = work.state.model
        data = work.calibration(self.spec.calibration)
        structure = trace(model, work.example())
        done = reconstruct(model, work.dense, structure, data, ridge=self.spec.ridge, masks=work.state.masks)
        work.state.notes[self.step] = [f"not refitted: {n} ({why})" for n, why in done.skipped.items()]
        work.cut(copy.deepcopy(model))


@dataclass(frozen=True)
class CutTo:
    """Units removed for real until a constraint is met."""

    step: str
    spec: PruneToSpec
    kind: ClassVar[str] = "prune"

    def run(self, work: Work) -> None:
        spec, state = self.spec, work.state
        small, proof = prune_to(
            state.model,
            work.example(1 if spec.latency_ms is not None else 2),
            macs=spec.macs,
            parameters=spec.parameters,
            latency_ms=spec.latency_ms,
            criterion=make("criterion", spec.criterion),
            data=work.calibration(spec.calibration),
            loss=loss_of,
            include=spec.include,
            exclude=spec.exclude,
            round_to=spec.round_to,
            min_kept=spec.min_kept,
        )
        state.masks, state.requested = None, None
        work.replace(small, self.step, ["; ".join(repr(proof).splitlines())])


@dataclass(frozen=True)
class Compact:
    """A really smaller network takes the masked one's place."""

    step: str
    kind: ClassVar[str] = "compact"

    def run(self, work: Work) -> None:
        state = work.state
        state.model, proof = compact(state.model, work.example(), masks=state.masks)
        state.masks = proof.masks
        state.structured = state.compacted = True
        state.notes[self.step] = ["; ".join(repr(proof).splitlines())]


@dataclass(frozen=True)
class Retrain:
    """One training run with the zeros held."""

    step: str
    training: Training
    kind: ClassVar[str] = "retrain"

    def run(self, work: Work) -> None:
        work.train(work.state.model, self.step, self.training)


@dataclass(frozen=True)
class Scratch:
    """A new network with other options takes the pruned one's place, and is trained."""

    step: str
    spec: ScratchSpec
    training: Training
    kind: ClassVar[str] = "retrain"

    def run(self, work: Work) -> None:
        state, options = work.state, self.spec.options_beside(work.plan.model.model_extra or {})
        state.model, state.options = scratch_model(work.plan, options, work.seed), options
        state.masks = state.pruned = state.requested = None
        work.train(state.model, self.step, self.training)


def actions(plan: Plan) -> list[Action]:
    """Return the plan's steps laid out: a gradual step is a cut and a training, again and again."""
    return [action for step in plan.steps for action in _actions_of(step)]


def _actions_of(step: Step) -> list[Action]:
    settings, training = step.settings, step.training
    if isinstance(settings, Training):
        return [Retrain(step.id, settings)]
    if isinstance(settings, ScratchSpec):
        assert training is not None
        return [Scratch(step.id, settings, training)]
    if isinstance(settings, ShareSpec):
        assert training is not None
        return [Share(step.id, settings, training)]
    if isinstance(settings, PackSpec):
        return [Pack(step.id, settings)]
    if isinstance(settings, RefitSpec):
        return [Refit(step.id, settings)]
    if isinstance(settings, PruneToSpec):
        return [CutTo(step.id, settings)]
    if isinstance(settings, CompactSpec):
        return [Compact(step.id)]
    if isinstance(settings, GreedySpec):
        return [GreedyCut(step.id, settings, training)]
    if isinstance(settings, SelectionSpec):
        assert training is not None
        return [Select(step.id, settings, training)]
    if isinstance(settings, AnnealSpec):
        assert training is not None
        return [Anneal(step.id, settings, training)]
    levels = len(make_schedule(settings))
    result: list[Action] = []
    for level in range(levels):
        result.append(Cut(step.id, settings, level))
        if training is not None and level < levels - 1:
            result.append(Retrain(f"{step.id}.{level}", training))
    return result


def count_epochs(plan: Plan) -> int:
    """Return how many epochs a trial trains after the dense network's; of a greedy search, which ends
    when it is there, those of one stage, and of an annealing those with one training at each alpha."""
    trainings = [
        training
        for action in actions(plan)
        for training in [getattr(action, "training", None)] * getattr(action, "stages", 1)
    ]
    return sum(training.epochs for training in trainings if training is not None)


def _of_dense(budget: Global, work: Work, spec: PruneSpec) -> tuple[Global, list[str]]:
    """Return the budget that leaves as many weights as one over the dense network would."""
    now, dense = (_weights(m, spec) for m in (work.state.model, work.dense))
    share = 1 - (1 - budget.sparsity) * dense / now
    if share >= 0:
        return replace(budget, sparsity=share), []
    achieved = 1 - now / dense
    return replace(budget, sparsity=0.0), [
        f"{spec.budget['sparsity']:.2%} of the dense network asked for, and {achieved:.2%} was gone already"
    ]


def _weights(model: nn.Module, spec: PruneSpec) -> int:
    return sum(t.weight.numel() for t in find_targets(model, spec.include, spec.exclude).values())
