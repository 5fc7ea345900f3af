"""``sparsegpt``: weights zeroed and the others moved to make up for them, without training."""

from __future__ import annotations

import copy
from typing import Annotated, Self

from pydantic import Field, model_validator

from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Budget, Calibration, Exclude, Include
from secateur.experiments.work import Work
from secateur.methods.sparsegpt import check_choices, sparsegpt


class SparseGPT(Step):
    """Weights are zeroed and the others moved to make up for them, layer after layer; the zeros are held."""

    budget: Budget = Field(description="How much goes of each layer: `uniform`, or `nm`.")
    damping: Annotated[Real, Field(ge=0)] = Field(
        0.01, description="Added to the diagonal of each layer's second moments, in units of their mean."
    )
    include: Include = None
    exclude: Exclude = None
    calibration: Calibration = 1024

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a budget that compares layers."""
        check_choices(self.budget, self.damping)
        return self

    def run(self, work: Work, id: str) -> None:
        state = work.state
        state.masks = sparsegpt(
            state.model,
            self.budget,
            work.calibration(self.calibration),
            include=self.include,
            exclude=self.exclude,
            masks=state.masks,
            damping=self.damping,
        )
        state.requested = None if state.structured else getattr(self.budget, "sparsity", None)
        state.notes[id] = list(state.masks.notes)
        work.cut(copy.deepcopy(state.model))
