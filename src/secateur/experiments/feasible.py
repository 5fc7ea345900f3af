"""Whether what a recipe names is there: networks with their options, data sets and files."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.data import DATASETS, loader_of
from secateur.errors import RecipeError, SecateurError
from secateur.experiments.plan import DataSpec, ModelSpec, PlanStep, TaskSpec
from secateur.experiments.steps.base import Step
from secateur.experiments.validation import told_at
from secateur.experiments.yaml_lines import Located
from secateur.models import build_model
from secateur.pruning.targets import matches
from secateur.task import TASKS
from secateur.task.built_in import smoothed
from secateur.text import nearest, shown
from secateur.training.settings import Training

Place = tuple[Any, ...]


@dataclass(frozen=True)
class _Network:
    """What steps can name of a network that could be built."""

    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    normed: bool


def check_data(spec: DataSpec, where: str) -> None:
    """Refuse a data set that is not there, or has not such options. One's own, as its whole name says, is
    looked at when it is loaded."""
    if spec.name in DATASETS or ":" not in spec.name:
        with told_at(where):
            loader_of(spec.name, spec.model_extra or {})


def check_task(spec: TaskSpec, trainings: Sequence[Training], where: str) -> None:
    """Refuse a task that is not known, and trainings that its loss cannot have. One's own, as its whole name
    says, is made when the study runs."""
    if spec.name in TASKS or ":" not in spec.name:
        with told_at(where):
            task = spec.build()
            for training in trainings:
                smoothed(task, training.label_smoothing)


def check_networks(
    model: ModelSpec, steps: Sequence[PlanStep], located: Located, place: Place, *, own: bool = False
) -> None:
    """Build the network of a point, and those that steps put in its place, and look up in each what the
    steps name.

    Secateur's own are built without memory. A user's factory runs only with ``own``, which builds no other.
    Raises RecipeError naming the place.
    """
    weights = model.weights
    if weights is not None and not Path(weights).is_file():
        where = located.where(("model", "weights"))
        raise RecipeError(f"{where}: model.weights {shown(weights)}: no such file")
    options = model.model_extra or {}
    network = _network(model.name, options, located.where(("model",)), own)
    for index, step in enumerate(steps):
        where = located.where((*place, "steps", index, step.kind))
        other = step.settings.builds(options)
        if other is not None:
            beside = {"name": model.name} | options | other
            network = _network(beside.pop("name"), beside, where, own)
        elif network is not None:
            _check_names(step.settings, network, where)


def _network(name: Any, options: dict[str, Any], where: str, own: bool) -> _Network | None:
    if not isinstance(name, str):
        raise RecipeError(f"{where}: the network's name is {shown(name)}; it is a text")
    if (":" in name) != own:
        return None
    text = json.dumps([name, options], sort_keys=True)
    found = _built(text) if own else _built_without_memory(text)
    if isinstance(found, str):
        raise RecipeError(f"{where}: {found}")
    return found


@functools.lru_cache(maxsize=256)
def _built_without_memory(text: str) -> _Network | str:
    with torch.device("meta"):
        return _built(text)


def _built(text: str) -> _Network | str:
    """Return the network that a name and options as JSON stand for, or what is wrong with them."""
    name, options = json.loads(text)
    if "seed" in options:
        return f"{name} has no option 'seed': the study's seeds draw its weights"
    try:
        network = build_model(name, **options)
    except SecateurError as error:
        return str(error)
    modules = {path: type(module).__name__ for path, module in network.named_modules() if path}
    normed = any("Norm" in kind for kind in modules.values())
    return _Network(tuple(name for name, _ in network.named_parameters()), tuple(modules), normed)


def _check_names(step: Step, network: _Network, where: str) -> None:
    """Refuse a pattern that names nothing, and a step that reads what the network does not have."""
    for pattern in step.patterns:
        several = any(mark in pattern for mark in ",+'")  # the name of a group of layers: "conv1, conv2 +3"
        if not several and not any(matches(name, pattern) for name in network.parameters):
            known = nearest(pattern, network.modules)
            raise RecipeError(f"{where}: pattern {shown(pattern)!r} matches nothing{known}")
    if step.reads_norms and not network.normed:
        raise RecipeError(f"{where}: its criterion reads the scales of norms, and the network has none")
