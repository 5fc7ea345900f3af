"""``share``: the weights of each target share a few values, which are trained."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Exclude, Include, Trained
from secateur.experiments.work import Work
from secateur.pruning.sharing import check_values, share_weights


def number_of_values(values: int) -> int:
    """Return a number of shared values; raises BudgetError for what is none."""
    check_values(values)
    return values


class Share(Step):
    """The surviving weights of each target share a few values (k-means), which are then trained."""

    timed_as: ClassVar[str] = "share"
    shares: ClassVar[bool] = True
    keeps_shared: ClassVar[bool] = True

    values: Annotated[int, AfterValidator(number_of_values)] = Field(
        16, description="How many values the weights of a target have."
    )
    include: Include = None
    exclude: Exclude = None
    train: Trained = Field(AS_TRAINED, description="The training of the values, put over `train`.")

    def run(self, work: Work, id: str) -> None:
        state = work.state
        sharing = share_weights(
            state.model, state.masks, values=self.values, include=self.include, exclude=self.exclude
        )
        if not state.retrained:
            work.cut(copy.deepcopy(state.model))
        work.train(state.model, id, self.train, sharing.held)
