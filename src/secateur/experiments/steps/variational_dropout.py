"""``variational_dropout``: noise on weights, trained, and the weights that are mostly noise zeroed."""

from __future__ import annotations

import copy
from typing import Annotated

from pydantic import Field

from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Exclude, Include, TrainedToTheLast
from secateur.experiments.work import Work
from secateur.methods.variational_dropout import VariationalDropout


class SparseVD(Step):
    """Every weight has noise whose size is trained; weights that are mostly noise are zeroed, and held."""

    scale: Annotated[Real, Field(ge=0)] = Field(
        1.0, description="Of the divergence from the prior; 1 is the variational bound."
    )
    cut: Real = Field(3.0, description="The logarithm of variance over square from which a weight goes.")
    start: Real = Field(-10.0, description="The logarithm of each variance at first.")
    include: Include = None
    exclude: Exclude = None
    train: TrainedToTheLast = Field(
        AS_TRAINED, description="The training, put over `train`, with `keep: last`."
    )

    def run(self, work: Work, id: str) -> None:
        state = work.state
        state.masks, state.requested = None, None
        noisy = VariationalDropout(
            state.model,
            len(work.data.train),
            scale=self.scale,
            cut=self.cut,
            start=self.start,
            include=self.include,
            exclude=self.exclude,
        )
        work.train(noisy.network, id, self.train, noisy.trained)
        state.model, state.masks = noisy.fold()
        work.cut(copy.deepcopy(state.model))
