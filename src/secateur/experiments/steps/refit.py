"""``refit``: the layers that read removed units fitted to the dense network's outputs."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

from pydantic import Field

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Step
from secateur.experiments.work import Work
from secateur.methods.reconstruction import reconstruct
from secateur.structure.tracing import trace


class Refit(Step):
    """The layers that read removed units are fitted to the dense network's outputs by least squares."""

    timed_as: ClassVar[str] = "refit"
    needs_shapes: ClassVar[bool] = True

    calibration: Count = Field(10_000, description="Training examples that they are fitted on.")
    ridge: Annotated[Real, Field(ge=0)] = Field(1e-3, description="The ridge of the least squares.")

    def run(self, work: Work, id: str) -> None:
        model = work.state.model
        data = work.calibration(self.calibration)
        structure = trace(model, work.example())
        done = reconstruct(model, work.dense, structure, data, ridge=self.ridge, masks=work.state.masks)
        work.state.notes[id] = [f"not refitted: {name} ({why})" for name, why in done.skipped.items()]
        work.cut(copy.deepcopy(model))
