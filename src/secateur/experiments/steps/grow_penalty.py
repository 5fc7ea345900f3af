"""``grow_penalty``: what is to be pruned shrinks under a penalty that grows, and is pruned then."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Self

from pydantic import Field, model_validator

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Action
from secateur.experiments.steps.prune import Prune
from secateur.experiments.steps.settings import AS_TRAINED, TrainedToTheLast
from secateur.experiments.validation import wrong
from secateur.experiments.work import Work
from secateur.methods.unit_penalties import growing_penalty
from secateur.training.settings import Training


class GrowPenalty(Prune):
    """What `prune` would take is trained under an L2 penalty that grows stage by stage, and goes then."""

    growth: Annotated[Real, Field(gt=0)] = Field(1e-2, description="What each stage adds to the penalty.")
    stages: Count = Field(5, description="How many trainings; what is to go is chosen anew for each.")
    train: TrainedToTheLast = Field(
        AS_TRAINED, description="The training of each stage, put over `train`, with `keep: last`."
    )

    @model_validator(mode="after")
    def check_stages(self) -> Self:
        """Refuse a second way there."""
        if self.schedule is not None:
            raise wrong("a penalty that grows is a way there already; leave schedule out", "schedule")
        return self

    @property
    def trainings(self) -> Sequence[Training]:
        return [self.train] * self.stages

    def actions(self, id: str) -> Sequence[Action]:
        stages = [Action(partial(self.shrink, id=id, stage=stage), "retrain") for stage in range(self.stages)]
        return [*stages, Action(partial(self.cut, id=id, budget=self.budget), self.timed_as)]

    def shrink(self, work: Work, id: str, stage: int) -> None:
        """Train one stage: the penalty is on what pruning now would take."""
        model = work.state.model
        going = self.pruned(work, copy.deepcopy(model), self.budget).bind(model)
        penalty = partial(growing_penalty, masks=going, start=self.growth * (stage + 1), growth=0.0)
        work.train(model, f"{id}.{stage}", self.train, penalty)
