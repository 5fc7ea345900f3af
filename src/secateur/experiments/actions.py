"""What a trial does, one action after the other: a plan's steps laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.experiments.recipe import Plan, make_schedule
from secateur.experiments.specs import CompactSpec, PruneSpec, PruneToSpec, RefitSpec, ScratchSpec
from secateur.training.settings import Training


@dataclass(frozen=True)
class Cut:
    """An action: one pruning of a ``prune`` step, at the step's budget ``level``."""

    step: str
    spec: PruneSpec
    level: int


@dataclass(frozen=True)
class Refit:
    """An action: the layers that read removed units fitted to the dense network's outputs."""

    step: str
    spec: RefitSpec


@dataclass(frozen=True)
class CutTo:
    """An action: units removed for real until a constraint is met."""

    step: str
    spec: PruneToSpec


@dataclass(frozen=True)
class Compact:
    """An action: a really smaller network takes the masked one's place."""

    step: str


@dataclass(frozen=True)
class Retrain:
    """An action: one training run with the zeros held."""

    step: str
    training: Training


@dataclass(frozen=True)
class Scratch:
    """An action: a new network with other ``options`` takes the pruned one's place, and is trained."""

    step: str
    options: dict[str, Any]
    training: Training


Action = Cut | CutTo | Refit | Compact | Retrain | Scratch


def actions(plan: Plan) -> list[Action]:
    """Return the plan's steps laid out: a gradual step is a cut and a training, again and again."""
    result: list[Action] = []
    for step in plan.steps:
        if isinstance(step.settings, Training):
            result.append(Retrain(step.id, step.settings))
            continue
        if isinstance(step.settings, ScratchSpec):
            assert step.training is not None
            result.append(Scratch(step.id, step.settings.model, step.training))
            continue
        if isinstance(step.settings, RefitSpec):
            result.append(Refit(step.id, step.settings))
            continue
        if isinstance(step.settings, PruneToSpec):
            result.append(CutTo(step.id, step.settings))
            continue
        if isinstance(step.settings, CompactSpec):
            result.append(Compact(step.id))
            continue
        spec = step.settings
        levels = len(make_schedule(spec))
        for level in range(levels):
            result.append(Cut(step.id, spec, level))
            if step.training is not None and level < levels - 1:
                result.append(Retrain(f"{step.id}.{level}", step.training))
    return result


def count_epochs(plan: Plan) -> int:
    """Return how many epochs a trial trains after the dense network's."""
    return sum(a.training.epochs for a in actions(plan) if isinstance(a, (Retrain, Scratch)))
