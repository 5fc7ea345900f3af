"""``anneal``: narrow branches take the place of the layers in stages of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from secateur.experiments.fields import Count, Real, Strict
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Exclude, Include, Trained
from secateur.experiments.validation import wrong
from secateur.experiments.work import Work
from secateur.methods.annealing import Annealing, Stage, anneal_branches
from secateur.methods.branch_annealing import BranchAnnealing, Descent
from secateur.training.batches import seed_of
from secateur.training.settings import Training


class WayDown(Strict):
    """How alpha goes from 1 to 0, as ``secateur.Descent``, ``name`` being its kind."""

    name: Literal["step", "multiplicative", "exponential", "cosine"] = "step"
    step: Annotated[Real, Field(ge=1e-4, le=1)] = 0.1
    factor: Annotated[Real, Field(gt=0, le=0.999)] = 0.5
    rate: Annotated[Real, Field(ge=1e-6)] = 0.05
    stages: Annotated[int, Field(ge=1, le=10_000)] = 10
    threshold: Annotated[Real, Field(ge=1e-6, le=1)] = 0.01


class Anneal(Step):
    """Narrow branches take the place of the layers in stages of training, and are folded."""

    removes: ClassVar[bool] = True

    ratio: Annotated[Real, Field(gt=0, lt=1)] = Field(0.5, description="The share of channels of a branch.")
    start: Literal["least squares", "svd", "random"] = Field(
        "least squares", description="What the branches begin from."
    )
    update: Literal["start", "never"] | Real = Field(
        "start", description="The pretrained weights are trained from the start, never, or from this alpha."
    )
    schedule: WayDown = Field(
        WayDown(), description="The way of alpha from 1 to 0: as `Descent`, its kind being the `name`."
    )
    adaptive: bool = Field(False, description="Alpha falls by half as much where the score is not held.")
    tolerance: Real = Field(
        1.0,
        description="How much worse the validation score may get, in the task's unit: points of accuracy.",
    )
    rates: Annotated[list[Real], Field(max_length=100)] = Field(
        [1.0], description="Factors of the learning rate, a training each, while the score is not held."
    )
    order: Literal["together", "backwards"] = Field(
        "together", description="All layers at once, or one after the other from the output."
    )
    refit: bool = Field(False, description="`up` is fitted by least squares each time alpha falls.")
    statistics: bool = Field(False, description="The norms' statistics are taken anew after each training.")
    include: Include = None
    exclude: Exclude = None
    calibration: Count = Field(1024, description="Training examples that the start and the fits read.")
    train: Trained = Field(AS_TRAINED, description="The training at each alpha, put over `train`.")

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a way down that is none, and a training that does not suit it."""
        self.annealing  # noqa: B018
        if self.train.epochs == 0 or self.train.l1 or self.train.slimming:
            raise wrong("each stage needs epochs, and neither l1 nor slimming", "train")
        return self

    @property
    def annealing(self) -> Annealing:
        """The way down, its tolerance in the task's unit; raises BudgetError for one that is none."""
        settings = self.schedule.model_dump()
        descent = Descent(settings.pop("name"), **settings)
        return Annealing(
            descent,
            self.adaptive,
            self.tolerance,
            tuple(self.rates),
            self.update,
            self.order,
            self.refit,
            self.statistics,
        )

    @property
    def trainings(self) -> Sequence[Training]:
        return [self.train] * len(self.annealing.descent.alphas())

    def run(self, work: Work, id: str) -> None:
        state, branches = work.state, self._branches(work, id)
        if state.annealed is not None:
            branches.network.load_state_dict(state.annealed)
        state.masks, state.requested = None, None

        def fine_tune(network: nn.Module, rate: float) -> None:
            name = f"{id}.{len(state.stages[id])}"
            work.train(network, name, replace(self.train, lr=self.train.lr * rate))

        def evaluate(network: nn.Module) -> tuple[float, float]:
            found = work.score(network)
            return found.scale.oriented(found.score), found.loss

        def on_stage(stages: tuple[Stage, ...]) -> None:
            """From here a killed trial goes on."""
            state.stages[id] = [asdict(stage) for stage in stages]
            state.annealed = branches.network.state_dict()
            work.save()

        done = [Stage(**row) for row in state.stages.get(id, [])]
        way = replace(self.annealing, tolerance=self.tolerance / work.task.score.factor)
        anneal_branches(branches, fine_tune, evaluate, way, stages=done, on_stage=on_stage)
        small, proof = branches.fold()
        state.annealed = None
        skipped = [f"no branch beside {name}: {why}" for name, why in branches.skipped.items()]
        work.replace(small, id, proof, skipped)

    def _branches(self, work: Work, id: str) -> BranchAnnealing:
        return BranchAnnealing(
            work.state.model,
            work.example(),
            ratio=self.ratio,
            start=self.start if work.state.annealed is None else "random",  # what was saved takes its place
            data=work.calibration(self.calibration),
            include=self.include,
            exclude=self.exclude,
            seed=seed_of(work.seed, id),
        )
