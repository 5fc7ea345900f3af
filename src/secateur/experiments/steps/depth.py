"""``depth``: whole blocks that change least what passes through them, removed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from secateur.errors import ModelError, RecipeError
from secateur.experiments.dense import scratch_model
from secateur.experiments.fields import Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Calibration
from secateur.experiments.work import Work
from secateur.methods.depth import block_influence, drop_blocks


class Depth(Step):
    """Whole blocks go, those that change least what passes through them, and the result is proved equal."""

    removes: ClassVar[bool] = True
    needs_shapes: ClassVar[bool] = True

    share: Annotated[Real, Field(gt=0, lt=1)] = Field(description="Of the blocks, rounded.")
    option: str = Field("layers", description="The network's option that says how many blocks it has.")
    calibration: Calibration = 1024

    def run(self, work: Work, id: str) -> None:
        state = work.state
        influence = block_influence(state.model, work.calibration(self.calibration))
        number = round(self.share * len(influence))
        if not number:
            raise RecipeError(f"{id}: {self.share:g} of {len(influence)} blocks is none; ask for more")
        going = sorted(influence, key=lambda path: influence[path])[:number]
        small, proof = drop_blocks(state.model, work.example(), going)
        state.options = (state.options or {}) | {self.option: len(influence) - number}
        self._check(work, small.state_dict().keys(), id)
        state.masks, state.requested = None, None
        gone = [f"{path}: gone, its influence {influence[path]:.4f}" for path in going]
        work.replace(small, id, proof, gone)

    def _check(self, work: Work, names: object, id: str) -> None:
        """Refuse a network that could not be built anew when a killed trial goes on."""
        try:
            built = scratch_model(work.plan, work.state.options or {}, work.seed)
        except ModelError as error:
            raise RecipeError(f"{id}: {error}") from error
        if built.state_dict().keys() != names:
            raise RecipeError(f"{id}: {self.option} is no option that says how many blocks the network has")
