"""``prune_to``: units removed for real until a constraint is met."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Alike, Calibration, Criterion, Exclude, Include
from secateur.experiments.work import Work
from secateur.methods.constraints import prune_to
from secateur.methods.goals import check_goal
from secateur.pruning.capabilities import says
from secateur.pruning.unit_criteria import L2Norm

_GOALS = ("macs", "parameters", "latency_ms")


class PruneTo(Step):
    """Units are removed for real, as few of the least important as meet one constraint."""

    removes: ClassVar[bool] = True

    criterion: Criterion = Field(L2Norm(), description="How important a unit is.")
    macs: Real | None = Field(None, description="The share of the multiply-adds that may be left.")
    parameters: Real | None = Field(None, description="The share of the parameters that may be left.")
    latency_ms: Real | None = Field(None, description="What one example may take, measured here.")
    round_to: Count = Field(1, description="Each group that is pruned keeps a multiple of this.")
    min_kept: Count = Field(1, description="Each group keeps at least this many units.")
    alike: Alike = False
    include: Include = None
    exclude: Exclude = None
    calibration: Calibration = 1024

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse anything but one constraint that can be met, and a criterion that ranks no units."""
        check_goal(_GOALS, **self.goals)
        if not says(self.criterion, "counts_units"):
            raise ValueError("its criterion ranks single weights; l2_norm ranks units")
        return self

    @property
    def goals(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _GOALS}

    @property
    def reads_norms(self) -> bool:
        return says(self.criterion, "reads_norms")

    def run(self, work: Work, id: str) -> None:
        state = work.state
        small, proof = prune_to(
            state.model,
            work.example(1 if self.latency_ms is not None else 2),
            **self.goals,
            criterion=self.criterion,
            data=work.calibration(self.calibration),
            loss=work.task.loss,
            include=self.include,
            exclude=self.exclude,
            round_to=self.round_to,
            min_kept=self.min_kept,
            alike=self.alike,
        )
        state.masks, state.requested = None, None
        work.replace(small, id, proof)
