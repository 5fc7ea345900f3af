"""What a trial runs: a point of a recipe's sweep, with its data, its network and its steps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from secateur.errors import RecipeError, SecateurError, StepError
from secateur.experiments.fields import EXACT, Real
from secateur.experiments.steps.base import Action, Step
from secateur.factories import from_places
from secateur.task import build_task
from secateur.task.base import Task
from secateur.text import first_line
from secateur.training.settings import Training

Point = dict[str, Any]


class DataSpec(BaseModel):
    """``name`` of a data set, the ``validation`` share or number, and the data set's own options."""

    model_config = EXACT | ConfigDict(extra="allow")
    name: str
    validation: Annotated[int | Real, Field(ge=0)] = 0.1


class ModelSpec(BaseModel):
    """``name`` of a network or ``package.module:factory``, its options, and ``weights`` to start from."""

    model_config = EXACT | ConfigDict(extra="allow")
    name: str
    weights: str | None = None


class TaskSpec(BaseModel):
    """``name`` of a task or ``package.module:Task``, alone or with its options."""

    model_config = EXACT | ConfigDict(extra="allow")
    name: str = "classification"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        return {"name": raw} if isinstance(raw, str) else raw

    @property
    def usual(self) -> bool:
        """Whether it is what a recipe that names none has."""
        return self.model_dump() == {"name": "classification"}

    def build(self) -> Task:
        """Return the task; raises TaskError for one that is none."""
        return _task(json.dumps(self.model_dump(), sort_keys=True))


@lru_cache(maxsize=16)
def _task(spec: str) -> Task:
    return build_task(**json.loads(spec))


@dataclass(frozen=True)
class PlanStep:
    """A step in its place: its ``kind`` as the recipe writes it, the ``id`` that sweeps address it by, and
    its ``settings``."""

    kind: str
    id: str
    settings: Step

    @property
    def actions(self) -> Sequence[Action]:
        """What the step does; one of the user's own finds modules in the working folder meanwhile."""
        actions = self.settings.actions(self.id)
        if ":" not in self.kind:
            return actions
        places = [os.getcwd(), *sys.path]
        return [replace(action, run=from_places(self._named(action.run), places)) for action in actions]

    def _named(self, run: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a function whose errors name the step; a machine's are no fault of the step's."""

        def named(work: Any) -> None:
            try:
                run(work)
            except (SecateurError, OSError, MemoryError):
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {first_line(error)}"
                raise StepError(f"step {self.id!r} ({self.kind}) failed: {why}") from error

        return named


@dataclass(frozen=True)
class Plan:
    """One point of a recipe's sweep, all of it validated: what a trial runs with each of its ``seeds``,
    which are the study's unless its method or its grid has some of its own."""

    method: str
    point: Point
    data: DataSpec
    model: ModelSpec
    task: TaskSpec
    train: Training
    steps: tuple[PlanStep, ...]
    threads: int
    device: str
    measure: tuple[str, ...]
    seeds: tuple[int, ...]
    config: dict[str, Any] = field(repr=False)

    @property
    def actions(self) -> Sequence[Action]:
        """What a trial does, one after the other; a killed one goes on by the number of its action."""
        return [action for step in self.steps for action in step.actions]

    @property
    def epochs(self) -> int:
        """How many epochs a trial trains after the dense network's; of a greedy search, which ends when it
        is there, those of one stage, and of an annealing those with one training at each alpha."""
        return sum(training.epochs for step in self.steps for training in step.settings.trainings)


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" stands for here.

    Raises:
        RecipeError: it is "cuda", and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device is cuda, and torch finds no CUDA device here; set auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
