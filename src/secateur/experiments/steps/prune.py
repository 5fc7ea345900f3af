"""``prune``: single weights, blocks of them or whole units zeroed, at once or gradually."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import zip_longest
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, model_validator
from torch import nn

from secateur.errors import SecateurError, SecateurWarning
from secateur.experiments.choices import make
from secateur.experiments.fields import EXACT, Count
from secateur.experiments.steps.base import Action, Step
from secateur.experiments.steps.rewind import check_epoch, rewind
from secateur.experiments.steps.settings import (
    Alike,
    Budget,
    Calibration,
    Criterion,
    Exclude,
    Include,
    Shrinkage,
    own_training,
)
from secateur.experiments.validation import wrong
from secateur.experiments.work import Work
from secateur.pruning.budgets import Global
from secateur.pruning.capabilities import amount_of, says
from secateur.pruning.criteria import Magnitude
from secateur.pruning.masks import Masks
from secateur.pruning.prune import Block, prune
from secateur.pruning.prune import check as check_choices
from secateur.pruning.schedules import OneShot, budgets_along
from secateur.pruning.shrinkage import Hard
from secateur.pruning.targets import find_targets
from secateur.structure.tracing import trace
from secateur.training.settings import Training


def _between(raw: Any, info: ValidationInfo) -> Training | None:
    return None if raw == {} else own_training(raw, info)


class Gradually(BaseModel):
    """A schedule by name with its settings, and the training after each of its steps but the last."""

    model_config = EXACT | ConfigDict(extra="allow")
    name: str
    steps: Annotated[int, Field(ge=2, le=10_000)] | None = None
    retrain: Annotated[Training | None, PlainValidator(_between)]
    rewind: Annotated[int, Field(ge=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def check(self, info: ValidationInfo) -> Self:
        """Refuse an epoch to go back to that the dense training does not have."""
        if self.rewind is not None:
            check_epoch(self.rewind, info, "rewind")
        return self

    @property
    def schedule(self) -> Any:
        own = {} if self.steps is None else {"steps": self.steps}
        return make("schedule", {"name": self.name} | own | (self.model_extra or {}))


class Prune(Step):
    """Weights, blocks of them or whole units are zeroed; from there on the zeros are held."""

    criterion: Criterion = Field(Magnitude(), description="How important a weight, or a unit, is.")
    budget: Budget = Field(description="How much goes, and from where.")
    shrinkage: Shrinkage = Field(Hard(), description="What becomes of a weight at the cut.")
    schedule: Gradually | None = Field(
        None,
        description="The way to the budget in steps; `retrain`: the training after each but the last; "
        "`rewind: k` sets the weights, before that training, to those after k epochs of the dense one.",
    )
    block: Annotated[tuple[Count, Count], pydantic.Strict(False)] | None = Field(
        None, description="Height and width of the blocks that go together."
    )
    units: bool = Field(False, description="Whole neurons, filters or heads go, not single weights.")
    round_to: Count = Field(1, description="Of units, each group that is pruned keeps a multiple of this.")
    min_kept: Count = Field(1, description="Of units, each group keeps at least this many.")
    alike: Alike = False
    include: Include = None
    exclude: Exclude = None
    calibration: Calibration = 1024
    relative_to: Literal["network", "dense"] = Field(
        "network", description="What a global sparsity is a share of: the network as it is, or the dense one."
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse what cannot be pruned so, before anything is trained."""
        check_choices(
            self.criterion,
            self.budget,
            shrinkage=self.shrinkage,
            granularity=self._block,
            units=self.units,
            scheduled=self.schedule is not None,
            round_to=self.round_to,
            min_kept=self.min_kept,
            alike=self.alike,
        )
        if self.relative_to == "dense" and (self.units or not isinstance(self.budget, Global)):
            raise ValueError("relative_to: dense goes with single weights and a global budget")
        try:
            levels = len(self.levels)
        except SecateurError as error:
            raise wrong(str(error), "schedule") from error
        except Exception as error:  # of a schedule of the user's: whatever it raises, this line names it
            raise wrong(f"schedule: {type(error).__name__}: {error}", "schedule") from error
        if self.schedule is not None and levels < 2:
            raise wrong(f"{self.schedule.name} has no steps; leave schedule out", "schedule")
        return self

    @cached_property
    def levels(self) -> Sequence[Any]:
        """The budget of each cut."""
        return budgets_along(self.budget, OneShot() if self.schedule is None else self.schedule.schedule)

    @property
    def _block(self) -> Block | None:
        return None if self.block is None else Block(*self.block)

    @property
    def trainings(self) -> Sequence[Training]:
        between = None if self.schedule is None else self.schedule.retrain
        return [] if between is None else [between] * (len(self.levels) - 1)

    @property
    def patterns(self) -> Sequence[str]:
        amount = amount_of(self.budget)
        return [*super().patterns, *(amount if isinstance(amount, Mapping) else ())]

    @property
    def needs_shapes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it goes back to weights of the dense network."""
        return self.schedule is not None and self.schedule.rewind is not None

    @property
    def reads_norms(self) -> bool:
        return says(self.criterion, "reads_norms")

    def actions(self, id: str) -> Sequence[Action]:
        cuts = [Action(partial(self.cut, id=id, budget=budget), self.timed_as) for budget in self.levels]
        between = [
            Action(partial(self.train_between, id=f"{id}.{level}", training=training), "retrain")
            for level, training in enumerate(self.trainings)
        ]
        return [action for pair in zip_longest(cuts, between) for action in pair if action is not None]

    def cut(self, work: Work, id: str, budget: Any) -> None:
        """Prune once, to the ``budget`` of one level."""
        state, asked, notes = work.state, getattr(budget, "sparsity", None), []
        if self.relative_to == "dense":
            budget, notes = self._of_dense(budget, work)
        state.masks = self.pruned(work, state.model, budget)
        of_all = self.relative_to == "dense" or not (self.units or state.structured)
        state.requested = asked if of_all and isinstance(asked, float) else None
        state.structured = state.structured or self.units
        units = [f"{name}: {kept} of {of} units left" for name, (kept, of) in state.masks.units.items()]
        state.notes[id] = [*state.masks.notes, *units, *notes]
        work.cut(copy.deepcopy(state.model))

    def pruned(self, work: Work, model: nn.Module, budget: Any) -> Masks:
        """Prune a network like the trial's, in place, on top of the trial's masks."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecateurWarning)  # the masks' notes say the same in the report
            return prune(
                model,
                self.criterion,
                budget,
                shrinkage=None if self.units else self.shrinkage,
                granularity=self._block,
                data=work.calibration(self.calibration),
                loss=work.task.loss,
                include=self.include,
                exclude=self.exclude,
                masks=work.state.masks,
                structure=trace(model, work.example()) if self.units else None,
                round_to=self.round_to,
                min_kept=self.min_kept,
                alike=self.alike,
            )

    def _of_dense(self, budget: Global, work: Work) -> tuple[Global, list[str]]:
        """Return the budget that leaves as many weights as one over the dense network would."""
        now, dense = (self._weights(model) for model in (work.state.model, work.dense))
        share = 1 - (1 - budget.sparsity) * dense / now
        if share >= 0:
            return replace(budget, sparsity=share), []
        asked, gone = self.budget.sparsity, 1 - now / dense
        return replace(budget, sparsity=0.0), [
            f"{asked:.2%} of the dense network asked for, and {gone:.2%} was gone already"
        ]

    def _weights(self, model: nn.Module) -> int:
        return sum(t.weight.numel() for t in find_targets(model, self.include, self.exclude).values())

    def train_between(self, work: Work, id: str, training: Training) -> None:
        """Train after one cut and before the next, from weights of the dense training where it says so."""
        if self.schedule is not None and self.schedule.rewind is not None:
            rewind(work, id, self.schedule.rewind)
        work.train(work.state.model, id, training)
