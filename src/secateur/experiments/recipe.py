"""Recipes: one YAML file an experiment, validated before anything runs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError, nearest
from secateur.experiments.overrides import set_value
from secateur.experiments.specs import DataSpec, ModelSpec, RecipeSpec
from secateur.experiments.steps import REMOVING, Step, step_of, training_of, validated
from secateur.experiments.yaml_lines import Located, read_yaml
from secateur.training.settings import Training

Point = dict[str, Any]


_SETTABLE = [key for key in RecipeSpec.model_fields if key not in ("steps", "methods")]


@dataclass(frozen=True)
class Plan:
    """One point of a recipe's sweep, all of it validated: what a trial runs with each seed."""

    method: str
    point: Point
    data: DataSpec
    model: ModelSpec
    train: Training
    steps: tuple[Step, ...]
    threads: int
    device: str
    measure: tuple[str, ...]
    config: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe: its plans in the order of the sweep, and what stands around them.

    ``path`` and ``settings`` are what it was loaded from, ``raw`` the document with the settings.
    """

    spec: RecipeSpec
    plans: tuple[Plan, ...]
    text: str
    path: str
    settings: dict[str, Any]
    raw: dict[str, Any]
    located: Located

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def seeds(self) -> list[int]:
        return self.spec.seeds

    @property
    def ranges(self) -> dict[str, list[Any]]:
        """What a searching sampler chooses within: the sweep's values by key."""
        assert isinstance(self.spec.sweep, dict)
        return self.spec.sweep

    def plan_at(self, point: Point) -> Plan:
        """Return the validated plan at a point that a sampler chose."""
        return _plan_at(self.name, self.raw["steps"], point, self.raw, self.spec, self.located, ())


def packaged_recipes() -> dict[str, Path]:
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
        raise RecipeError(f"unknown recipe {name_or_path!r}{nearest(name_or_path, known)} (or a .yaml file)")
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise RecipeError(f"{path.name}: a recipe is a mapping with name, data, model and steps")
    raw = copy.deepcopy(located.value)
    for key, value in (settings or {}).items():
        set_value(raw, key, value, f"--set {key}", _SETTABLE)
    if seeds is not None:
        raw["seeds"] = list(seeds)
    spec = validated(RecipeSpec, raw, located)
    if (spec.steps is None) == (spec.methods is None):
        raise RecipeError(f"{path.name}: give either steps or methods")
    if len(set(spec.seeds)) != len(spec.seeds):
        raise RecipeError(f"{located.where(('seeds',))}: a seed stands twice in {spec.seeds}")
    if spec.sampler == "tpe" and (spec.steps is None or not isinstance(spec.sweep, dict) or not spec.sweep):
        raise RecipeError(f"{path.name}: sampler tpe searches one grid: give steps and one sweep")
    plans = tuple(_plans(raw, spec, located))
    text = path.read_text(encoding="utf-8")
    return Recipe(spec, plans, text, str(path), dict(settings or {}), raw, located)


def _plans(raw: dict[str, Any], spec: RecipeSpec, located: Located) -> Iterable[Plan]:
    if spec.methods is None:
        methods = {spec.name: (raw["steps"], spec.sweep, ())}
    else:
        methods = {
            name: (raw["methods"][name]["steps"], method.sweep, ("methods", name))
            for name, method in spec.methods.items()
        }
    for method, (steps, sweep, place) in methods.items():
        points = list(_grid(sweep))
        if not points:
            raise RecipeError(f"{located.where((*place, 'sweep'))}: the sweep of {method} has no point")
        for index, point in enumerate(points):
            if point in points[:index]:
                raise RecipeError(f"{located.where((*place, 'sweep'))}: the point {point} stands twice")
            yield _plan_at(method, steps, point, raw, spec, located, place)


def _grid(sweep: dict[str, list[Any]] | list[dict[str, list[Any]]]) -> Iterable[Point]:
    for grid in sweep if isinstance(sweep, list) else [sweep]:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _plan_at(
    method: str,
    steps_raw: list[Any],
    point: Point,
    raw: dict[str, Any],
    spec: RecipeSpec,
    located: Located,
    place: tuple[str, ...],
) -> Plan:
    config = {key: copy.deepcopy(raw.get(key)) for key in ("data", "model", "train")}
    config["steps"] = copy.deepcopy(steps_raw)
    for key, value in point.items():
        where = located.where((*place, "sweep", key)) + f": sweep {key}"
        set_value(config, key, value, where, _SETTABLE)
    train = training_of(config["train"] or {}, Training(), located, ("train",))
    if train.distill:
        raise RecipeError(f"{located.where(('train',))}: distill needs a dense network; retraining has one")
    steps: list[Step] = []
    for index, raw in enumerate(config["steps"]):
        steps.append(step_of(raw, train, located, (*place, "steps", index)))
        if [s.id for s in steps].count(steps[-1].id) > 1:
            where = located.where((*place, "steps", index))
            raise RecipeError(f"{where}: two steps have the id {steps[-1].id!r}; give one an id of its own")
        removing = next((s.kind for s in steps if s.kind in REMOVING), None)
        if steps[-1].kind == "refit" and removing:
            where = located.where((*place, "steps", index))
            raise RecipeError(f"{where}: refit needs the dense network's shapes; put it before {removing}")
    return Plan(
        method=method,
        point=point,
        data=validated(DataSpec, config["data"], located, ("data",)),
        model=validated(ModelSpec, config["model"], located, ("model",)),
        train=train,
        steps=tuple(steps),
        threads=spec.threads,
        device=spec.device,
        measure=tuple(spec.measure),
        config=config,
    )
