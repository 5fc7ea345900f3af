"""Recipes: one YAML file an experiment, validated before anything runs."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError
from secateur.experiments.feasible import check_data, check_networks, check_task
from secateur.experiments.overrides import set_value
from secateur.experiments.plan import DataSpec, ModelSpec, Plan, PlanStep, Point, pick_device
from secateur.experiments.specs import RecipeSpec, Sweep
from secateur.experiments.steps.reading import check_order, read_step
from secateur.experiments.steps.settings import Base
from secateur.experiments.validation import told_at, validated
from secateur.experiments.yaml_lines import Located, plain_copy, read_yaml
from secateur.text import nearest, shown

POINTS = 10_000
TRIALS = 100_000

_SETTABLE = [key for key in RecipeSpec.model_fields if key not in ("steps", "methods")]
_OF_THE_STUDY = [key for key in _SETTABLE if key not in ("data", "model", "train")]


@dataclass(frozen=True)
class _Document:
    """A recipe as it is written: its ``spec``, the ``raw`` document with the settings, and its lines."""

    spec: RecipeSpec
    raw: dict[str, Any]
    located: Located

    @property
    def methods(self) -> list[_Method]:
        spec = self.spec
        if spec.methods is None:
            return [_Method(spec.name, self.raw["steps"], spec.sweep)]
        return [
            _Method(name, self.raw["methods"][name]["steps"], method.sweep, method.seeds, ("methods", name))
            for name, method in spec.methods.items()
        ]


@dataclass(frozen=True)
class Recipe(_Document):
    """A validated recipe: its plans in the order of the sweep, and what stands around them.

    ``path`` and ``settings`` are what it was loaded from, ``raw`` the document with the settings.
    """

    plans: tuple[Plan, ...]
    path: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def seeds(self) -> list[int]:
        return self.spec.seeds

    @property
    def jobs(self) -> list[tuple[Plan, int]]:
        """Every point of the sweep with every seed it runs, in order: the trials of a grid."""
        return [(plan, seed) for plan in self.plans for seed in plan.seeds]

    @property
    def ranges(self) -> dict[str, list[Any]]:
        """What a searching sampler chooses within: the sweep's values by key."""
        assert isinstance(self.spec.sweep, dict)
        return self.spec.sweep

    def plan_at(self, point: Point) -> Plan:
        """Return the validated plan at a point that a sampler chose."""
        (method,) = self.methods
        return _plan_at(self, method, point, tuple(self.seeds))


@functools.cache
def packaged_recipes() -> Mapping[str, Path]:
    """Return the recipes in the package by name."""
    folder = Path(str(resources.files("secateur.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(
    name_or_path: str, settings: Mapping[str, Any] | None = None, seeds: Sequence[int] | None = None
) -> Recipe:
    """Load a recipe by its name in the package or the path of a file, with ``settings`` such as
    ``{"retrain.epochs": 0}`` put over it, and validate every point of its sweep.

    Raises RecipeError naming the file, the line and the nearest valid key.
    """
    known = packaged_recipes()
    path = Path(name_or_path)
    if name_or_path in known:
        path = known[name_or_path]
    elif path.suffix not in (".yaml", ".yml"):
        raise RecipeError(
            f"unknown recipe {shown(name_or_path)!r}{nearest(name_or_path, known)} (or a .yaml file)"
        )
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise RecipeError(f"{path.name}: a recipe is a mapping with name, data, model and steps")
    raw, over = copy.deepcopy(located.value), plain_copy(settings or {}, "--set")
    for key, value in over.items():
        set_value(raw, key, value, f"--set {shown(key)}", _SETTABLE)
    if seeds is not None:
        raw["seeds"] = plain_copy(list(seeds), "--seeds")
    spec = validated(RecipeSpec, raw, located)
    if (spec.steps is None) == (spec.methods is None):
        raise RecipeError(f"{path.name}: give either steps or methods")
    if len(set(spec.seeds)) != len(spec.seeds):
        raise RecipeError(f"{located.where(('seeds',))}: a seed stands twice in {shown(spec.seeds)}")
    document = _Document(spec, raw, located)
    _check_sweep(document, over)
    with told_at(located.where(("device",))):
        pick_device(spec.device)
    _check_size(document)
    plans = tuple(_plans(document))
    if not any(plan.seeds for plan in plans):
        raise RecipeError(
            f"{path.name}: nothing runs with the seeds {shown(spec.seeds)}: "
            "every method has others of its own"
        )
    return Recipe(spec, raw, located, plans, str(path), over)


@dataclass(frozen=True)
class _Method:
    """A method of a recipe (which may have but one): its steps as they are written, its sweep, the seeds that
    are its own, and its place."""

    name: str
    steps: list[Any]
    sweep: Sweep
    seeds: list[int] | None = None
    place: tuple[Any, ...] = ()

    @property
    def grids(self) -> Iterable[tuple[dict[str, list[Any]], tuple[Any, ...]]]:
        """A copy of each grid of the sweep, and its place."""
        place = (*self.place, "sweep")
        if isinstance(self.sweep, dict):
            return [(dict(self.sweep), place)]
        return [(dict(grid), (*place, index)) for index, grid in enumerate(self.sweep)]


def _check_sweep(document: _Document, over: Mapping[str, Any]) -> None:
    """Refuse a sweep that its sampler cannot run, and the settings put ``over`` that it leaves no effect."""
    spec, located = document.spec, document.located
    if spec.sampler == "tpe" and (spec.steps is None or not isinstance(spec.sweep, dict) or not spec.sweep):
        raise RecipeError(f"{located.name}: sampler tpe searches one grid: give steps and one sweep")
    if spec.sampler == "tpe" and "seeds" in spec.sweep:
        where = located.where(("sweep", "seeds"))
        raise RecipeError(
            f"{where}: sampler tpe runs each point with all seeds: leave seeds out of the sweep"
        )
    if spec.sampler == "grid" and "trials" in over:
        raise RecipeError("trials: a grid runs every point of its sweep; trials go with sampler tpe")
    grids = [grid for method in document.methods for grid, _ in method.grids]
    swept = [key for key in over if grids and all(key in grid for grid in grids)]
    if swept:
        raise RecipeError(f"--set {shown(swept[0])}: every point of the sweep sets it; set the sweep instead")


def _check_size(document: _Document) -> None:
    """Refuse a study that is too large before its points are laid out."""
    spec, located, points = document.spec, document.located, 0
    for method in document.methods:
        for grid, _ in method.grids:
            points += math.prod(len(values) for key, values in grid.items() if key != "seeds")
        if points > POINTS:
            where = located.where((*method.place, "sweep"))
            raise RecipeError(f"{where}: the sweep has {points:,} points; {POINTS:,} at most")
    runs = points if spec.sampler == "grid" else spec.trials
    if runs * len(spec.seeds) > TRIALS:
        raise RecipeError(
            f"{located.where(('seeds',))}: {runs:,} points with {len(spec.seeds):,} seeds are "
            f"{runs * len(spec.seeds):,} trials; {TRIALS:,} at most"
        )


def _plans(document: _Document) -> Iterable[Plan]:
    located = document.located
    for method in document.methods:
        seeds = _narrowed(tuple(document.spec.seeds), method.seeds, located.where((*method.place, "seeds")))
        sweep = located.where((*method.place, "sweep"))
        points: set[str] = set()
        for grid, where in method.grids:
            of_grid = _narrowed(seeds, grid.pop("seeds", None), located.where((*where, "seeds")))
            for values in itertools.product(*grid.values()):
                point = dict(zip(grid, values, strict=True))
                key = json.dumps(point, sort_keys=True)
                if key in points:
                    raise RecipeError(f"{sweep}: the point {shown(point, 200)} stands twice")
                points.add(key)
                yield _plan_at(document, method, point, of_grid)
        if not points:
            raise RecipeError(f"{sweep}: the sweep of {method.name} has no point")


def _narrowed(seeds: tuple[int, ...], own: list[Any] | None, where: str) -> tuple[int, ...]:
    """Return those of ``seeds`` that are a method's or a grid's ``own``; all where it has none."""
    if own is None:
        return seeds
    if not own or any(type(seed) is not int for seed in own):
        raise RecipeError(f"{where}: seeds is {own}; it lists one seed or more of the study's, as integers")
    if len(set(own)) != len(own):
        raise RecipeError(f"{where}: a seed stands twice in {own}")
    return tuple(seed for seed in seeds if seed in own)


def _plan_at(document: _Document, method: _Method, point: Point, seeds: tuple[int, ...]) -> Plan:
    raw, spec, located, place = document.raw, document.spec, document.located, method.place
    config = {key: copy.deepcopy(raw.get(key)) for key in ("data", "model", "train")}
    if not spec.task.usual:  # studies that name none keep the names of their trials
        config["task"] = spec.task.model_dump()
    config["steps"] = copy.deepcopy(method.steps)
    for key, value in point.items():
        where = located.where((*place, "sweep", key)) + f": sweep {shown(key)}"
        if key.partition(".")[0] in _OF_THE_STUDY:
            raise RecipeError(f"{where}: is the whole study's; a sweep is over data, model, train and steps")
        set_value(config, key, value, where, _SETTABLE)
    usual = {} if config["train"] is None else config["train"]
    train = validated(Base, usual, located, ("train",))
    if train.distill:
        raise RecipeError(f"{located.where(('train',))}: distill needs a dense network; retraining has one")
    steps: list[PlanStep] = []
    for index, step in enumerate(config["steps"]):
        steps.append(read_step(step, train, located, (*place, "steps", index)))
        check_order(steps, located.where((*place, "steps", index)))
    trainings = [training for step in steps for training in step.settings.trainings]
    if "temperature" in usual and not any(training.distill for training in trainings):
        where = located.where(("train", "temperature"))
        raise RecipeError(f"{where}: temperature does nothing without a step that has distill")
    data = validated(DataSpec, config["data"], located, ("data",))
    model = validated(ModelSpec, config["model"], located, ("model",))
    check_data(data, located.where(("data",)))
    check_task(spec.task, [train, *trainings], located.where(("task",)))
    check_networks(model, steps, located, place)
    return Plan(
        method=method.name,
        point=point,
        data=data,
        model=model,
        task=spec.task,
        train=train,
        steps=tuple(steps),
        threads=spec.threads,
        device=spec.device,
        measure=tuple(spec.measure),
        seeds=seeds,
        config=config,
    )


def check_factories(recipe: Recipe) -> None:
    """Build every network and task of a recipe that comes from a factory of the user's, and so run it,
    before anything is trained. Raises RecipeError for one that cannot be built or lacks what is named."""
    for plan in {repr((plan.model, plan.steps)): plan for plan in recipe.plans}.values():
        check_networks(plan.model, plan.steps, recipe.located, (), own=True)
    with told_at(recipe.located.where(("task",))):
        recipe.spec.task.build()
