"""``group_lasso``: units pushed to zero as wholes, and removed."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field

from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Exclude, Include, TrainedToTheLast
from secateur.experiments.work import Work
from secateur.methods.unit_penalties import group_lasso
from secateur.structure.compact import compact
from secateur.structure.tracing import trace


class GroupLasso(Step):
    """Units' norms shrink while the network is trained; units that come to zero are removed for real."""

    removes: ClassVar[bool] = True

    penalty: Annotated[Real, Field(ge=0)] = Field(
        1e-3, description="Times the learning rate it is taken off each unit's norm, after every step."
    )
    include: Include = None
    exclude: Exclude = None
    train: TrainedToTheLast = Field(
        AS_TRAINED, description="The training, put over `train`, with `keep: last`."
    )

    def run(self, work: Work, id: str) -> None:
        state = work.state
        state.masks, state.requested = None, None
        structure = trace(state.model, work.example())
        chosen = {"include": self.include, "exclude": self.exclude}
        shrinking = partial(group_lasso, structure=structure, penalty=self.penalty, **chosen)
        work.train(state.model, id, self.train, shrinking)
        small, proof = compact(state.model, work.example(), structure=structure)
        work.replace(small, id, proof)
