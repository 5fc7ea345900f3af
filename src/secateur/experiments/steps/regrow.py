"""``regrow``: a network that is sparse from the start, and whose zeros move as it is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Action, Step
from secateur.experiments.steps.settings import (
    AS_TRAINED,
    Budget,
    Calibration,
    Exclude,
    Include,
    TrainedToTheLast,
)
from secateur.experiments.work import Work
from secateur.pruning.criteria import Random
from secateur.pruning.prune import check as check_choices
from secateur.pruning.prune import prune
from secateur.pruning.regrowth import regrow
from secateur.training.batches import seed_of
from secateur.training.settings import Training


class Regrow(Step):
    """Random weights are zeroed; after each stage of training the smallest go and as many others come."""

    budget: Budget = Field(description="How much is zero, and where: `erk` is the usual one.")
    by: Literal["gradient", "random"] = Field("gradient", description="Which come: RigL's, or SET's.")
    share: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.3, description="Of the living weights, how many move after the first stage; it falls to 0."
    )
    stages: Count = Field(10, description="How many trainings; the zeros move after each but the last.")
    include: Include = None
    exclude: Exclude = None
    calibration: Calibration = 1024
    train: TrainedToTheLast = Field(
        AS_TRAINED, description="The training of each stage, put over `train`, with `keep: last`."
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a budget that random scores do not go with."""
        check_choices(Random(), self.budget)
        return self

    @property
    def trainings(self) -> Sequence[Training]:
        return [self.train] * self.stages

    def actions(self, id: str) -> Sequence[Action]:
        found = [Action(partial(self.thin, id=id), self.timed_as)]
        for stage in range(self.stages):
            found.append(Action(partial(self.train_stage, id=id, stage=stage), "retrain"))
            if stage < self.stages - 1:
                found.append(Action(partial(self.move, id=id, stage=stage), self.timed_as))
        return found

    def thin(self, work: Work, id: str) -> None:
        """Zero random weights."""
        state, criterion = work.state, Random(seed_of(work.seed, id))
        state.masks = prune(
            state.model,
            criterion,
            self.budget,
            include=self.include,
            exclude=self.exclude,
            masks=state.masks,
        )
        state.requested = getattr(self.budget, "sparsity", None)
        state.notes[id] = list(state.masks.notes)
        work.cut(copy.deepcopy(state.model))

    def train_stage(self, work: Work, id: str, stage: int) -> None:
        work.train(work.state.model, f"{id}.{stage}", self.train)

    def move(self, work: Work, id: str, stage: int) -> None:
        """Let some weights die and as many come, ever fewer."""
        masks = work.state.masks
        assert masks is not None  # ``thin`` made them
        share = self.share / 2 * (1 + math.cos(math.pi * stage / self.stages))
        data = work.calibration(self.calibration) if self.by == "gradient" else None
        regrow(masks, share, data=data, seed=seed_of(work.seed, id, stage))
