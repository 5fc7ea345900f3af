"""``rewind``: the weights go back to an early epoch of the dense training, and the zeros stay."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, ValidationInfo, model_validator

from secateur.errors import RecipeError
from secateur.experiments.dense import early_weights
from secateur.experiments.steps.base import Step
from secateur.experiments.validation import wrong
from secateur.experiments.work import Work
from secateur.training.settings import Training


class Rewind(Step):
    """All weights go back to what they were early in the dense network's training; the zeros stay."""

    needs_shapes: ClassVar[bool] = True

    epochs: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="After so many epochs of the dense training; 0: before it."
    )

    @model_validator(mode="after")
    def check(self, info: ValidationInfo) -> Self:
        """Refuse an epoch that the dense training does not have."""
        check_epoch(self.epochs, info, "epochs")
        return self

    def run(self, work: Work, id: str) -> None:
        rewind(work, id, self.epochs)


def check_epoch(epochs: int, info: ValidationInfo, setting: str) -> None:
    """Refuse an epoch that the dense training does not have."""
    trained = (info.context or {}).get("train", Training()).epochs
    if epochs > trained:
        raise wrong(f"{epochs} is after the dense training, which has {trained}", setting)


def rewind(work: Work, id: str, epochs: int) -> None:
    """Set the trial's weights to what they were after ``epochs`` of the dense training; the zeros stay."""
    if work.plan.model.weights is not None:
        raise RecipeError(f"{id}: the network begins with weights that were given; there is no way back")
    work.state.model.load_state_dict(early_weights(work.plan, work.seed, work.data, epochs))
    if work.state.masks is not None:
        work.state.masks.apply()
