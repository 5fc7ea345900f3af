"""``low_rank``: two thin layers in the place of one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Exclude, Include
from secateur.experiments.work import Work
from secateur.methods.low_rank import low_rank


class LowRankLayers(Step):
    """Layers become two thin ones each, by the singular values of their weights, where that is cheaper."""

    removes: ClassVar[bool] = True
    needs_shapes: ClassVar[bool] = True

    energy: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, description="The share of a layer's squared singular values that is kept."
    )
    share: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None, description="Or the share of its weights that is left."
    )
    include: Include = None
    exclude: Exclude = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse anything but one measure of how much stays."""
        if (self.energy is None) == (self.share is None):
            raise ValueError("give one of energy and share")
        return self

    def run(self, work: Work, id: str) -> None:
        state = work.state
        small, done = low_rank(
            state.model,
            work.example(),
            energy=self.energy,
            share=self.share,
            include=self.include,
            exclude=self.exclude,
        )
        state.masks, state.requested = None, None
        work.replace(small, id, done)
