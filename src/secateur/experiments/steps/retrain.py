"""``retrain``: one training run with the zeros held."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Trained
from secateur.experiments.work import Work


class Retrain(Step):
    """The network is trained with the zeros held; the settings are those of `train`, put over them."""

    timed_as: ClassVar[str] = "retrain"
    training: Trained = Field(description="")

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, raw: Any) -> Any:
        return {"training": raw}

    def run(self, work: Work, id: str) -> None:
        work.train(work.state.model, id, self.training)
