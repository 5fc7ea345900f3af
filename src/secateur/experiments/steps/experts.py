"""``experts``: the experts of mixtures that give least, removed for real."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Calibration
from secateur.experiments.work import Work
from secateur.methods.expert_scores import score_experts, weakest_experts
from secateur.structure.fewer_experts import remove_experts


class Experts(Step):
    """The experts that give least are taken out of each mixture, and the result is proved equal."""

    removes: ClassVar[bool] = True

    share: Annotated[Real, Field(gt=0, lt=1)] = Field(description="Of the experts of each mixture.")
    by: Literal["reap", "frequency"] = Field(
        "reap", description="What they give the tokens that are routed to them, or how many those are."
    )
    groups: Count = Field(1, description="Groups of experts that a router chooses among; each loses its own.")
    calibration: Calibration = 1024

    def run(self, work: Work, id: str) -> None:
        state = work.state
        scores = score_experts(state.model, work.calibration(self.calibration), by=self.by)
        going = weakest_experts(scores, self.share, groups=self.groups)
        small, proof = remove_experts(state.model, work.example(), going)
        state.masks, state.requested = None, None
        work.replace(small, id, proof)
