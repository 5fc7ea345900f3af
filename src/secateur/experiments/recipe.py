"""Recipes: one YAML file an experiment, validated before anything runs."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from secateur.errors import RecipeError, SecateurError, nearest
from secateur.experiments.choices import make
from secateur.experiments.overrides import set_value
from secateur.experiments.specs import (
    CompactSpec,
    DataSpec,
    GreedySpec,
    ModelSpec,
    PruneSpec,
    PruneToSpec,
    RecipeSpec,
    RefitSpec,
    ScratchSpec,
    SelectionSpec,
)
from secateur.experiments.yaml_lines import Located, read_yaml
from secateur.training.settings import Training

Point = dict[str, Any]


_REMOVING = ("prune_to", "greedy", "structure_selection", "compact", "scratch")
UNIT_BUDGETS = ("uniform", "global", "per_layer", "threshold", "lamp", "parameter_share")
_SETTABLE = [key for key in RecipeSpec.model_fields if key not in ("steps", "methods")]


@dataclass(frozen=True)
class Step:
    """One validated step: its ``kind``, the ``id`` that sweeps address it by, its settings, and
    its ``training``: between the cuts of a gradual or greedy one, or of a network from scratch."""

    kind: str
    id: str
    settings: (
        PruneSpec
        | PruneToSpec
        | GreedySpec
        | SelectionSpec
        | RefitSpec
        | CompactSpec
        | ScratchSpec
        | Training
    )
    training: Training | None = None


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
    spec = _validated(RecipeSpec, raw, located)
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
    train = _training(config["train"] or {}, Training(), located, ("train",))
    if train.distill:
        raise RecipeError(f"{located.where(('train',))}: distill needs a dense network; retraining has one")
    steps: list[Step] = []
    for index, raw in enumerate(config["steps"]):
        steps.append(_step(raw, train, located, (*place, "steps", index)))
        if [s.id for s in steps].count(steps[-1].id) > 1:
            where = located.where((*place, "steps", index))
            raise RecipeError(f"{where}: two steps have the id {steps[-1].id!r}; give one an id of its own")
        removing = next((s.kind for s in steps if s.kind in _REMOVING), None)
        if steps[-1].kind == "refit" and removing:
            where = located.where((*place, "steps", index))
            raise RecipeError(f"{where}: refit needs the dense network's shapes; put it before {removing}")
    return Plan(
        method=method,
        point=point,
        data=_validated(DataSpec, config["data"], located, ("data",)),
        model=_validated(ModelSpec, config["model"], located, ("model",)),
        train=train,
        steps=tuple(steps),
        threads=spec.threads,
        device=spec.device,
        measure=tuple(spec.measure),
        config=config,
    )


def _step(raw: Any, train: Training, located: Located, place: tuple[Any, ...]) -> Step:
    where = located.where(place)
    kinds = [key for key in raw if key != "id"] if isinstance(raw, dict) else []
    if len(kinds) != 1:
        raise RecipeError(
            f"{where}: a step has one key, its kind (one of {', '.join(_STEPS)}), and maybe an id"
        )
    kind = kinds[0]
    if kind not in _STEPS:
        raise RecipeError(f"{where}: unknown step {kind!r}{nearest(str(kind), _STEPS)}")
    settings, training = _STEPS[kind](raw[kind] or {}, train, located, (*place, kind))
    return Step(kind, str(raw.get("id", kind)), settings, training)


def _prune_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[PruneSpec, Training | None]:
    spec = _validated(PruneSpec, raw, located, place)
    for kind in ("criterion", "budget", "shrinkage"):
        try:
            make(kind, getattr(spec, kind))
        except SecateurError as error:
            raise RecipeError(f"{located.where((*place, kind))}: {error}") from error
    _check_combination(spec, located.where(place))
    if spec.schedule is None:
        return spec, None
    if spec.schedule.name == "one_shot":
        raise RecipeError(f"{located.where((*place, 'schedule'))}: one_shot has no steps; leave schedule out")
    try:
        make_schedule(spec)
    except SecateurError as error:
        raise RecipeError(f"{located.where((*place, 'schedule'))}: {error}") from error
    retrain = spec.schedule.retrain
    return spec, _training(retrain, train, located, (*place, "schedule", "retrain")) if retrain else None


def _check_combination(spec: PruneSpec, where: str) -> None:
    """Refuse, before anything is trained, what ``prune`` would refuse after it."""
    budget, shrinkage = spec.budget["name"], make("shrinkage", spec.shrinkage)
    whole = getattr(make("criterion", spec.criterion), "whole_units", False) or budget == "parameter_share"
    if whole and not spec.units:
        raise RecipeError(f"{where}: its criterion or budget is for whole units: set units: true")
    if not spec.units and (spec.round_to, spec.min_kept) != (1, 1):
        raise RecipeError(f"{where}: round_to and min_kept count units: set units: true")
    if spec.units and budget not in UNIT_BUDGETS:
        raise RecipeError(f"{where}: {budget} does not go with whole units; one of {', '.join(UNIT_BUDGETS)}")
    if spec.relative_to == "dense" and (spec.units or budget != "global"):
        raise RecipeError(f"{where}: relative_to: dense goes with single weights and a global budget")
    if spec.units and (spec.block is not None or type(shrinkage).__name__ != "Hard"):
        raise RecipeError(f"{where}: whole units go with neither a block nor a shrinkage")
    hard = type(shrinkage).__name__ == "Hard"
    magnitude = type(make("criterion", spec.criterion)).__name__ == "Magnitude"
    if not magnitude and (not hard or budget == "std"):
        what = "std" if hard else type(shrinkage).__name__.lower()
        raise RecipeError(f"{where}: {what} goes with the criterion magnitude alone")
    if type(shrinkage).__name__ == "Trimmed" and budget not in ("threshold", "std"):
        raise RecipeError(f"{where}: trimmed goes with a value budget (threshold, std), not with {budget}")
    if not hard and (spec.schedule is not None or spec.block is not None):
        raise RecipeError(f"{where}: a shrinkage other than hard goes with neither a schedule nor a block")


def _retrain_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[Training, None]:
    return _training(raw, train, located, place), None


def _scratch_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[ScratchSpec, Training]:
    spec = _validated(ScratchSpec, raw, located, place)
    return spec, _training(spec.train, train, located, (*place, "train"))


def make_schedule(spec: PruneSpec) -> list[Any]:
    """Return the budget of each cut of a ``prune`` step."""
    from secateur.pruning.schedules import OneShot, budgets_along

    budget = make("budget", spec.budget)
    if spec.schedule is None:
        return budgets_along(budget, OneShot())
    settings = {"name": spec.schedule.name, "steps": spec.schedule.steps, "initial": spec.schedule.initial}
    return budgets_along(budget, make("schedule", settings))


def _training(raw: Any, base: Training, located: Located, place: tuple[Any, ...]) -> Training:
    """Validate training settings; what ``raw`` does not say is as in ``base``."""
    if not isinstance(raw, dict):
        raise RecipeError(f"{located.where(place)}: {place[-1]} is a mapping of training settings")
    merged = {f.name: getattr(base, f.name) for f in fields(Training)} | raw
    return _validated(Training, merged, located, place)


def _prune_to_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[PruneToSpec, None]:
    spec = _validated(PruneToSpec, raw, located, place)
    _check_goal(located.where(place), macs=spec.macs, parameters=spec.parameters, latency_ms=spec.latency_ms)
    try:
        criterion = make("criterion", spec.criterion)
    except SecateurError as error:
        raise RecipeError(f"{located.where((*place, 'criterion'))}: {error}") from error
    if not getattr(criterion, "whole_units", False):
        raise RecipeError(f"{located.where(place)}: its criterion ranks single weights; l2_norm ranks units")
    return spec, None


def _greedy_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[GreedySpec, Training | None]:
    spec = _validated(GreedySpec, raw, located, place)
    where = located.where(place)
    _check_goal(
        where,
        sparsity=spec.sparsity,
        parameters=spec.parameters,
        macs=spec.macs,
        latency_ms=spec.latency_ms,
        accuracy_drop=spec.accuracy_drop,
    )
    retrain = spec.retrain
    return spec, None if retrain is None else _training(retrain, train, located, (*place, "retrain"))


def _check_goal(where: str, **goals: float | None) -> None:
    """Refuse anything but one goal that can be met."""
    given = {name: limit for name, limit in goals.items() if limit is not None}
    if len(given) != 1:
        names = list(goals)
        raise RecipeError(f"{where}: give exactly one of {', '.join(names[:-1])} and {names[-1]}")
    (name, limit), *_ = given.items()
    if name in ("sparsity", "parameters", "macs") and not 0 < limit < 1:
        raise RecipeError(
            f"{where}: {name} is {limit}; it is a share of the dense network's, between 0 and 1"
        )
    if (name == "latency_ms" and limit <= 0) or (name == "accuracy_drop" and not 0 <= limit < 100):
        raise RecipeError(
            f"{where}: {name} is {limit}; it is "
            + (
                "a positive number of milliseconds"
                if name == "latency_ms"
                else "in percentage points, from 0"
            )
        )


def _selection_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[SelectionSpec, Training]:
    spec = _validated(SelectionSpec, raw, located, place)
    if not (spec.units or spec.blocks):
        raise RecipeError(
            f"{located.where(place)}: units and blocks are both false: nothing is left to select"
        )
    # The factors shrink from epoch to epoch: the best epoch on validation would be the first.
    training = _training({"keep": "last"} | spec.train, train, located, (*place, "train"))
    if training.epochs == 0 or training.keep != "last":
        raise RecipeError(f"{located.where((*place, 'train'))}: factors need epochs, and keep: last")
    return spec, training


def _plain_step(kind: type) -> Any:
    def step(raw: Any, train: Training, located: Located, place: tuple[Any, ...]) -> tuple[Any, None]:
        return _validated(kind, raw, located, place), None

    return step


_STEPS = {
    "prune": _prune_step,
    "prune_to": _prune_to_step,
    "greedy": _greedy_step,
    "structure_selection": _selection_step,
    "refit": _plain_step(RefitSpec),
    "compact": _plain_step(CompactSpec),
    "retrain": _retrain_step,
    "scratch": _scratch_step,
}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validated(kind: Any, raw: Any, located: Located, place: tuple[Any, ...] = ()) -> Any:
    """Validate ``raw`` as ``kind``; the first thing wrong becomes one line with its place."""
    try:
        return _adapter(kind).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # a check of our own: its message says all
            message = first["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{located.where(place)}: {message}") from error
        loc = tuple(part for part in first["loc"] if isinstance(part, int) or "[" not in part)
        where, key = located.where((*place, *loc)), loc[-1] if loc else "recipe"
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = kind.model_fields if hasattr(kind, "model_fields") else [f.name for f in fields(kind)]
            raise RecipeError(f"{where}: unknown key {key!r}{nearest(str(key), known)}") from error
        if first["type"] == "missing":
            raise RecipeError(f"{located.where(place)}: lacks {key!r}") from error
        raise RecipeError(
            f"{where}: {'.'.join(map(str, loc))} is {first['input']!r}: {first['msg']}"
        ) from error
