"""``l0``: gates on units, trained to be few, and the units behind shut ones removed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Exclude, Include, TrainedToTheLast
from secateur.experiments.work import Work
from secateur.methods.l0_gates import L0Gates


class L0(Step):
    """Every unit has a random gate that is trained with the weights; units with shut gates are removed."""

    removes: ClassVar[bool] = True

    penalty: Annotated[Real, Field(ge=0)] = Field(
        1e-3, description="Of one open gate: times their expected number it is added to the loss."
    )
    include: Include = None
    exclude: Exclude = None
    train: TrainedToTheLast = Field(
        AS_TRAINED, description="The training, put over `train`, with `keep: last`."
    )

    def run(self, work: Work, id: str) -> None:
        state = work.state
        state.masks, state.requested = None, None
        gates = L0Gates(
            state.model,
            work.example(),
            penalty=self.penalty,
            include=self.include,
            exclude=self.exclude,
        )
        work.train(gates.network, id, self.train, gates.trained)
        small, proof = gates.fold()
        work.replace(small, id, proof, [f"no gates on {name}: {why}" for name, why in gates.skipped.items()])
