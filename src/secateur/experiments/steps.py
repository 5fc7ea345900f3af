"""The steps of a recipe: each kind validated, with its training, before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from secateur.deploy.encoding import Squeeze
from secateur.errors import RecipeError, SecateurError
from secateur.experiments.choices import as_number, make
from secateur.experiments.specs import (
    AnnealSpec,
    CompactSpec,
    GreedySpec,
    PackSpec,
    PruneSpec,
    PruneToSpec,
    RecipeSpec,
    RefitSpec,
    ScratchSpec,
    SelectionSpec,
    ShareSpec,
)
from secateur.experiments.yaml_lines import Located
from secateur.pruning.sharing import check_values
from secateur.text import nearest, shown
from secateur.training.settings import Training

REMOVING = ("prune_to", "greedy", "structure_selection", "anneal", "compact", "scratch")
UNIT_BUDGETS = ("uniform", "global", "per_layer", "threshold", "lamp", "parameter_share")


@dataclass(frozen=True)
class Step:
    """One validated step: its ``kind``, the ``id`` that sweeps address it by, its settings, and
    its ``training``: between the cuts of a gradual or greedy one, at each stage of an annealing, of shared
    values, or of a network from scratch."""

    kind: str
    id: str
    settings: (
        PruneSpec
        | PruneToSpec
        | GreedySpec
        | SelectionSpec
        | AnnealSpec
        | RefitSpec
        | CompactSpec
        | ScratchSpec
        | ShareSpec
        | PackSpec
        | Training
    )
    training: Training | None = None


def trainings(steps: Sequence[Step]) -> list[Training]:
    """Return every training of the steps, each kind's own included."""
    own = [step.settings for step in steps if isinstance(step.settings, Training)]
    return own + [step.training for step in steps if step.training is not None]


def step_of(raw: Any, train: Training, located: Located, place: tuple[Any, ...]) -> Step:
    where = located.where(place)
    kinds = [key for key in raw if key != "id"] if isinstance(raw, dict) else []
    if len(kinds) != 1:
        raise RecipeError(
            f"{where}: a step has one key, its kind (one of {', '.join(_STEPS)}), and maybe an id"
        )
    kind = kinds[0]
    if kind not in _STEPS:
        raise RecipeError(f"{where}: unknown step {shown(kind)!r}{nearest(kind, _STEPS)}")
    name, settings = raw.get("id", kind), {} if raw[kind] is None else raw[kind]
    if not isinstance(name, str) or not name or "." in name or name in (*RecipeSpec.model_fields, "dense"):
        raise RecipeError(
            f"{where}: id is {shown(name)!r}; it is a text without dots, and no key of a recipe or 'dense'"
        )
    if not isinstance(settings, dict):
        raise RecipeError(f"{where}: {kind} is {shown(settings)}; it is a mapping of settings")
    return Step(kind, name, *_STEPS[kind](settings, train, located, (*place, kind)))


def _prune_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[PruneSpec, Training | None]:
    spec = validated(PruneSpec, raw, located, place)
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
    training = _retraining(retrain, train, located, (*place, "schedule", "retrain")) if retrain else None
    return spec, training


def _check_combination(spec: PruneSpec, where: str) -> None:
    """Refuse, before anything is trained, what ``prune`` would refuse after it."""
    budget, shrinkage = spec.budget["name"], make("shrinkage", spec.shrinkage)
    whole = getattr(make("criterion", spec.criterion), "counts_units", False) or budget == "parameter_share"
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
    return _retraining(raw, train, located, place), None


def _scratch_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[ScratchSpec, Training]:
    spec = validated(ScratchSpec, raw, located, place)
    if not spec.model and spec.width is None:
        raise RecipeError(f"{located.where(place)}: lacks 'model', the options that differ, or a 'width'")
    if "weights" in spec.model:
        raise RecipeError(f"{located.where((*place, 'model'))}: weights: from scratch, a network has none")
    return spec, _retraining(spec.train, train, located, (*place, "train"))


def _share_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[ShareSpec, Training]:
    spec = validated(ShareSpec, raw, located, place)
    _check_shared(spec.values, located.where((*place, "values")))
    return spec, _retraining(spec.train, train, located, (*place, "train"))


def _pack_step(raw: Any, train: Training, located: Located, place: tuple[Any, ...]) -> tuple[PackSpec, None]:
    spec = validated(PackSpec, raw, located, place)
    where = located.where((*place, "values"))
    if isinstance(spec.values, int):
        _check_shared(spec.values, where)
    elif spec.values not in (None, "lossless", "float16"):
        raise RecipeError(
            f"{where}: values is {shown(spec.values)!r}; "
            "it is null (lossless), float16 or a number of shared values"
        )
    Squeeze(spec.compression)  # what it lacks is said before anything is trained
    return spec, None


def _check_shared(values: int, where: str) -> None:
    try:
        check_values(values)
    except SecateurError as error:
        raise RecipeError(f"{where}: {error}") from error


def check_order(steps: list[Step], where: str) -> None:
    """Refuse the last of ``steps`` where it cannot stand after those before it."""
    *before, last = steps
    kinds = [step.kind for step in before]
    if last.id in [step.id for step in before]:
        raise RecipeError(f"{where}: two steps have the id {last.id!r}; give one an id of its own")
    removing = next((kind for kind in kinds if kind in REMOVING), None)
    if last.kind == "refit" and removing:
        raise RecipeError(f"{where}: refit needs the dense network's shapes; put it before {removing}")
    if "pack" in kinds:
        raise RecipeError(
            f"{where}: {last.kind} after pack: pack writes what the trial ends with, put it last"
        )
    if "share" in kinds and last.kind not in ("share", "compact", "pack"):
        raise RecipeError(f"{where}: {last.kind} would undo what share did; put it before share")


def make_schedule(spec: PruneSpec) -> list[Any]:
    """Return the budget of each cut of a ``prune`` step."""
    from secateur.pruning.schedules import OneShot, budgets_along

    budget = make("budget", spec.budget)
    if spec.schedule is None:
        return budgets_along(budget, OneShot())
    settings = {"name": spec.schedule.name, "steps": spec.schedule.steps, "initial": spec.schedule.initial}
    return budgets_along(budget, make("schedule", settings))


def training_of(raw: Any, base: Training, located: Located, place: tuple[Any, ...]) -> Training:
    """Validate training settings; what ``raw`` does not say is as in ``base``."""
    if not isinstance(raw, dict):
        raise RecipeError(f"{located.where(place)}: {place[-1]} is a mapping of training settings")
    known = [field.name for field in fields(Training)]
    for key in raw:
        if key not in known:
            where = located.where((*place, key))
            raise RecipeError(f"{where}: unknown key {shown(key)!r}{nearest(key, known)}")
    try:
        return replace(base, **{key: as_number(value) for key, value in raw.items()})
    except RecipeError as error:
        key = str(error).split()[0]  # it begins with the setting's name
        raise RecipeError(f"{located.where((*place, key))}: {error}") from error


def _retraining(raw: Any, base: Training, located: Located, place: tuple[Any, ...]) -> Training:
    """Validate the training of a step, which can learn from the dense network."""
    training = training_of(raw, base, located, place)
    if "temperature" in raw and not training.distill:
        where = located.where((*place, "temperature"))
        raise RecipeError(f"{where}: temperature does nothing without distill; give both, or neither")
    return training


def _prune_to_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[PruneToSpec, None]:
    spec = validated(PruneToSpec, raw, located, place)
    _check_goal(located.where(place), macs=spec.macs, parameters=spec.parameters, latency_ms=spec.latency_ms)
    try:
        criterion = make("criterion", spec.criterion)
    except SecateurError as error:
        raise RecipeError(f"{located.where((*place, 'criterion'))}: {error}") from error
    if not getattr(criterion, "counts_units", False):
        raise RecipeError(f"{located.where(place)}: its criterion ranks single weights; l2_norm ranks units")
    return spec, None


def _greedy_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[GreedySpec, Training | None]:
    spec = validated(GreedySpec, raw, located, place)
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
    return spec, None if retrain is None else _retraining(retrain, train, located, (*place, "retrain"))


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
    spec = validated(SelectionSpec, raw, located, place)
    if not (spec.units or spec.blocks):
        raise RecipeError(
            f"{located.where(place)}: units and blocks are both false: nothing is left to select"
        )
    if not spec.units and (spec.include or spec.exclude):
        raise RecipeError(f"{located.where(place)}: include and exclude choose units, and units is false")
    # The factors shrink from epoch to epoch: the best epoch on validation would be the first.
    training = _retraining({"keep": "last"} | spec.train, train, located, (*place, "train"))
    if training.epochs == 0 or training.keep != "last":
        raise RecipeError(f"{located.where((*place, 'train'))}: factors need epochs, and keep: last")
    return spec, training


def _anneal_step(
    raw: Any, train: Training, located: Located, place: tuple[Any, ...]
) -> tuple[AnnealSpec, Training]:
    spec = validated(AnnealSpec, raw, located, place)
    try:
        make_annealing(spec)
    except SecateurError as error:
        raise RecipeError(f"{located.where(place)}: {error}") from error
    training = _retraining(spec.train, train, located, (*place, "train"))
    if training.epochs == 0 or training.l1 or training.slimming:
        where = located.where((*place, "train"))
        raise RecipeError(f"{where}: each stage needs epochs, and neither l1 nor slimming")
    return spec, training


def make_annealing(spec: AnnealSpec) -> Any:
    """Return the way down that an ``anneal`` step describes."""
    from secateur.methods.annealing import Annealing
    from secateur.methods.branch_annealing import Descent

    settings = spec.schedule.model_dump()
    descent = Descent(settings.pop("name"), **settings)
    return Annealing(descent, spec.adaptive, spec.tolerance / 100, tuple(spec.rates), spec.update)


def _plain_step(kind: type) -> Any:
    def step(raw: Any, train: Training, located: Located, place: tuple[Any, ...]) -> tuple[Any, None]:
        return validated(kind, raw, located, place), None

    return step


_STEPS = {
    "prune": _prune_step,
    "prune_to": _prune_to_step,
    "greedy": _greedy_step,
    "structure_selection": _selection_step,
    "anneal": _anneal_step,
    "refit": _plain_step(RefitSpec),
    "compact": _plain_step(CompactSpec),
    "retrain": _retrain_step,
    "scratch": _scratch_step,
    "share": _share_step,
    "pack": _pack_step,
}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def validated(kind: Any, raw: Any, located: Located, place: tuple[Any, ...] = ()) -> Any:
    """Validate ``raw`` as ``kind``; the first thing wrong becomes one line with its place."""
    try:
        return _adapter(kind).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        loc = _within(raw, first["loc"])
        where, key = located.where((*place, *loc)), first["loc"][-1] if first["loc"] else "recipe"
        if first["type"] == "value_error":  # a check of our own: its message says all
            message = first["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{where}: {message}") from error
        if first["type"] == "extra_forbidden":
            raise RecipeError(
                f"{where}: unknown key {shown(key)!r}{nearest(str(key), _known(kind, loc))}"
            ) from error
        if first["type"] == "missing":
            raise RecipeError(f"{where}: lacks {key!r}") from error
        name = shown(".".join(map(str, loc or place[-1:])))
        raise RecipeError(f"{where}: {name} is {shown(repr(first['input']))}: {first['msg']}") from error


def _within(raw: Any, loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the keys and indices of ``loc`` that lead into ``raw``: a union's choices stand there too."""
    path: list[Any] = []
    for part in loc:
        if part in raw if isinstance(raw, dict) else isinstance(raw, list) and isinstance(part, int):
            path.append(part)
            raw = raw[part]
    return tuple(path)


def _known(kind: Any, loc: tuple[Any, ...]) -> list[str]:
    """Return the keys that there are where an unknown one stands."""
    for part in loc[:-1]:
        annotation = kind.model_fields[part].annotation if part in getattr(kind, "model_fields", {}) else None
        options = [annotation, *get_args(annotation)]
        kind = next((option for option in options if hasattr(option, "model_fields")), kind)
    return [*kind.model_fields]
