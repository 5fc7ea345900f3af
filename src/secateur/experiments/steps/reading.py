"""A step as a recipe writes it, and its place among the others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from secateur.errors import RecipeError
from secateur.experiments.overrides import id_of
from secateur.experiments.plan import PlanStep
from secateur.experiments.specs import RecipeSpec
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.table import STEPS
from secateur.experiments.validation import told_at, validated
from secateur.experiments.yaml_lines import Located
from secateur.factories import find_factory, named_function
from secateur.text import nearest, shown
from secateur.training.settings import Training


def read_step(raw: Any, train: Training, located: Located, place: tuple[Any, ...]) -> PlanStep:
    """Return a step of a recipe, validated.

    Args:
        raw: What the recipe says of it: its kind with its settings, and maybe an id.
        train: The dense network's training: what the step's own is like where it says nothing.
        located: The document, which knows its lines.
        place: Where ``raw`` stands in it.

    Raises:
        RecipeError: it is none, or has settings that cannot be.
    """
    where = located.where(place)
    kinds = [key for key in raw if key != "id"] if isinstance(raw, dict) else []
    if len(kinds) != 1:
        raise RecipeError(
            f"{where}: a step has one key, its kind (one of {', '.join(STEPS)}), and maybe an id"
        )
    kind, name = kinds[0], id_of(raw)
    made = _class_of(kind, where)
    if not isinstance(name, str) or not name or "." in name or name in (*RecipeSpec.model_fields, "dense"):
        raise RecipeError(
            f"{where}: id is {shown(name)!r}; it is a text without dots, and no key of a recipe or 'dense'"
        )
    settings = {} if raw[kind] is None else raw[kind]
    if not isinstance(settings, dict):
        raise RecipeError(f"{where}: {kind} is {shown(settings)}; it is a mapping of settings")
    return PlanStep(kind, name, validated(made, settings, located, (*place, kind), train))


def _class_of(kind: str, where: str) -> type[Step]:
    """Return the class of a kind of steps; one of the user's own is imported, as the recipe says."""
    if kind in STEPS:
        return named_function(STEPS[kind], RecipeError)  # type: ignore[return-value]
    if ":" not in kind:
        own = " (your own: package.module:Class)"
        raise RecipeError(f"{where}: unknown step {shown(kind)!r}{nearest(kind, STEPS)}{own}")
    with told_at(where):
        made = inspect.unwrap(find_factory(kind, RecipeError))
    if not (isinstance(made, type) and issubclass(made, Step)):
        raise RecipeError(f"{where}: {kind} is no step: it is no class that derives from secateur.Step")
    if made.run is Step.run and made.actions is Step.actions:
        raise RecipeError(f"{where}: {kind} does nothing: it defines no run(self, work, id)")
    return made


def check_order(steps: Sequence[PlanStep], where: str) -> None:
    """Refuse the last of ``steps`` where it cannot stand after those before it."""
    *before, last = steps
    if last.id in [step.id for step in before]:
        raise RecipeError(f"{where}: two steps have the id {last.id!r}; give one an id of its own")
    removing = next((step.kind for step in before if step.settings.removes), None)
    if last.settings.needs_shapes and removing:
        raise RecipeError(f"{where}: {last.kind} needs the dense network's shapes; put it before {removing}")
    end = next((step.kind for step in before if step.settings.ends), None)
    if end:
        raise RecipeError(
            f"{where}: {last.kind} after {end}: {end} writes what the trial ends with, put it last"
        )
    sharing = next((step.kind for step in before if step.settings.shares), None)
    if sharing and not last.settings.keeps_shared:
        raise RecipeError(f"{where}: {last.kind} would undo what {sharing} did; put it before {sharing}")
