"""``greedy``: units removed one by one until a goal is met."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, PlainValidator, ValidationInfo, model_validator
from torch import nn

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import Exclude, Include, own_training
from secateur.experiments.work import Work
from secateur.methods.goals import check_goal
from secateur.methods.greedy import Greedy, prune_greedily
from secateur.training.batches import seed_of
from secateur.training.settings import Training

_GOALS = ("sparsity", "parameters", "macs", "latency_ms")


def _if_given(raw: object, info: ValidationInfo) -> Training | None:
    return None if raw is None else own_training(raw, info)


class GreedyPruning(Step):
    """The unit that is missed least is removed for real, again and again, until one goal is met."""

    removes: ClassVar[bool] = True

    sparsity: Real | None = Field(None, description="The share of the dense network's weights that is gone.")
    parameters: Real | None = Field(None, description="The share of its parameters that may be left.")
    macs: Real | None = Field(None, description="The share of its multiply-adds that may be left.")
    latency_ms: Real | None = Field(None, description="What one example may take, measured here.")
    drop: Real | None = Field(
        None,
        description="How much worse the validation score may get, in the task's unit: percentage points of "
        "accuracy. Its old name is `accuracy_drop`.",
        validation_alias=AliasChoices("drop", "accuracy_drop"),
    )
    criterion: Literal["score", "output", "reconstruction"] = Field(
        "score",
        description="What missing a unit means: for the score, for the outputs of its readers, or for these "
        "once they are refitted (on as many training examples).",
    )
    scope: Literal["layer", "network"] = Field("layer", description="Among which units each one competes.")
    every: Count = Field(16, description="After so many removals the network is compacted and retrained.")
    at_once: Count = Field(1, description="So many units go before the others are judged anew.")
    min_kept: Count = Field(1, description="Each group keeps at least this many units.")
    examples: Count = Field(1000, description="Examples of the validation split that it is chosen on.")
    include: Include = None
    exclude: Exclude = None
    retrain: Annotated[Training | None, PlainValidator(_if_given)] = Field(
        None, description="The training after every so many removals, put over `train`; null is none."
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse anything but one goal that can be met."""
        goals = (*_GOALS, "drop")
        check_goal(goals, **{name: getattr(self, name) for name in goals})
        return self

    def run(self, work: Work, id: str) -> None:
        state = work.state
        fits = self.criterion == "reconstruction"  # what is fitted is fitted on training examples
        split = work.data.train if fits else work.data.validation
        chosen_on = split.drawn(self.examples, seed_of(work.seed, id))
        floor = None
        if self.drop is not None:
            floor = work.task.score.lowered(work.score(work.dense, chosen_on).score, self.drop)

        def fine_tune(small: nn.Module) -> None:
            assert self.retrain is not None
            work.cut(copy.deepcopy(small))
            done = sum(step.startswith(f"{id}.") for step in state.curves)
            work.train(small, f"{id}.{done}", self.retrain)

        def on_stage(small: nn.Module) -> None:
            """From here a killed trial goes on."""
            state.model, state.structured, state.compacted = small, True, True
            if self.retrain is None:
                work.cut(copy.deepcopy(small))
            work.save()

        state.masks, state.requested = None, None
        state.model, run = prune_greedily(
            state.model,
            work.example(1 if self.latency_ms is not None else 2),
            [(chosen_on.inputs, chosen_on.labels)],
            task=work.task,
            **{name: getattr(self, name) for name in _GOALS},
            score=floor,
            method=Greedy(self.criterion, self.scope, self.every, self.at_once, self.min_kept),
            fine_tune=None if self.retrain is None else fine_tune,
            dense=work.dense,
            include=self.include,
            exclude=self.exclude,
            on_stage=on_stage,
        )
        state.structured = state.compacted = True
        state.notes[id] = [f"slow to try {name}: {why}" for name, why in run.slow.items()]
        state.notes[id] += [f"kept {name}: {why}" for name, why in run.kept.items()]
        if state.pruned is None:
            work.cut(copy.deepcopy(state.model))
