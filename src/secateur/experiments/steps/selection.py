"""``structure_selection``: factors on units and residual blocks trained until many are zero."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Exclude, Include, TrainedToTheLast
from secateur.experiments.work import Work
from secateur.methods.structure_selection import StructureSelection


class Selection(Step):
    """Factors on units and blocks are trained with the weights; what small ones scale is removed for real."""

    removes: ClassVar[bool] = True

    penalty: Annotated[Real, Field(ge=0)] = Field(
        1e-3, description="Times the sum of all factors' sizes it is added to the loss."
    )
    lr: Annotated[Real, Field(gt=0)] | None = Field(
        0.1, description="The factors' learning rate; null is that of the optimizer."
    )
    momentum: Annotated[Real, Field(ge=0, lt=1)] = Field(0.9, description="The factors' momentum.")
    threshold: Annotated[Real, Field(ge=0)] = Field(1e-4, description="Factors under it are removed.")
    blocks: bool = Field(True, description="Residual blocks have factors.")
    units: bool = Field(True, description="Units have factors.")
    include: Include = None
    exclude: Exclude = None
    train: TrainedToTheLast = Field(
        AS_TRAINED, description="The training, put over `train`, with `keep: last`."
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse settings that select nothing."""
        if not (self.units or self.blocks):
            raise ValueError("units and blocks are both false: nothing is left to select")
        if not self.units and (self.include or self.exclude):
            raise ValueError("include and exclude choose units, and units is false")
        return self

    def run(self, work: Work, id: str) -> None:
        state = work.state
        selection = StructureSelection(
            state.model,
            work.example(),
            penalty=self.penalty,
            lr=self.lr,
            momentum=self.momentum,
            include=self.include,
            exclude=self.exclude,
            blocks=self.blocks,
            units=self.units,
        )
        state.masks, state.requested = None, None
        work.train(selection.network, id, self.train, selection.trained)
        small, selected = selection.fold(self.threshold)
        skipped = [f"no factor on {name}: {why}" for name, why in selection.skipped.items()]
        work.replace(small, id, selected, skipped)
