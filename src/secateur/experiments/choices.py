"""Criteria, budgets, shrinkages and schedules by the names that recipes and the command line use."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import secateur
from secateur.errors import RecipeError, SecateurError
from secateur.factories import find_factory
from secateur.text import nearest

MODULES = {
    "criterion": ("pruning.criteria", "pruning.saliency", "pruning.unit_criteria", "methods.elimination"),
    "budget": ("pruning.budgets", "pruning.structured"),
    "shrinkage": ("pruning.shrinkage",),
    "schedule": ("pruning.schedules",),
}

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", re.ASCII)


def spelled(name: str) -> str:
    """Return how a recipe spells a public name: PerLayer is per_layer, ERK is erk."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=BN)(?=[A-Z])", "_", name).lower()


@functools.cache
def choices(kind: str) -> dict[str, str]:
    """Return the public names of one kind by their spelling in recipes."""
    names = [n for n, module in secateur.PUBLIC.items() if module in MODULES[kind] and n[0].isupper()]
    return {spelled(name): name for name in names}


def make(kind: str, spec: str | Mapping[str, Any]) -> Any:
    """Build a criterion, budget, shrinkage or schedule from ``"magnitude"`` or ``{name: std, ...}``.

    A name may also be ``package.module:Class``, of a dataclass that has the settings as its fields. It is
    imported: so what is passed comes from a recipe or a command line, never from a file of results.

    Raises RecipeError naming the unknown name or setting, or the value that does not fit.

    Example:
        >>> from secateur.experiments.choices import make
        >>> make("budget", {"name": "std", "sensitivity": 1.5})
        Std(sensitivity=1.5, living=False)
    """
    if not isinstance(spec, (str, Mapping)):
        raise RecipeError(f"{kind}: {spec!r} is neither a name nor a mapping with one")
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    made = _class_of(kind, name)
    fields = {f.name: f for f in dataclasses.fields(made) if f.init}
    for key in settings:
        if key not in fields:
            raise RecipeError(f"{kind} {name}: unknown setting {key!r}{nearest(key, fields)}")
    for field in fields.values():
        if field.name not in settings and field.default is field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{kind} {name}: lacks {field.name!r}")
    try:
        return made(**{key: _typed(made, key, value) for key, value in settings.items()})
    except Exception as error:  # a user's own class: whatever it raises, this line names it
        said = error if isinstance(error, (SecateurError, TypeError)) else f"{type(error).__name__}: {error}"
        raise RecipeError(f"{kind} {name}: {said}") from error


def _class_of(kind: str, name: Any) -> Any:
    """Return the dataclass that a name stands for; one of the user's own is imported, as the recipe says."""
    if name is None:
        raise RecipeError(f"{kind}: says no name; known: {', '.join(choices(kind))}")
    if isinstance(name, str) and name in choices(kind):
        return getattr(secateur, choices(kind)[name])
    if not isinstance(name, str) or ":" not in name:
        known = nearest(str(name), choices(kind))
        raise RecipeError(f"{kind}: unknown name {name!r}{known} (your own: package.module:Class)")
    try:
        made = inspect.unwrap(find_factory(name, RecipeError))
    except RecipeError as error:
        raise RecipeError(f"{kind}: {error}") from error
    if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
        raise RecipeError(f"{kind}: {name} is no dataclass, whose fields would be its settings")
    return made


def as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; return the number it is, and anything else as it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _typed(made: type, key: str, value: Any) -> Any:
    """Return the value of a setting where it is of the type that its class says."""
    from pydantic import ValidationError

    value = as_number(value)
    try:
        _type(made, key).validate_python(value)
    except ValidationError as error:
        raise RecipeError(f"{key} is {value!r}: {error.errors()[0]['msg']}") from error
    return value


@functools.cache
def _type(made: type, key: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(get_type_hints(made)[key], config=strict)
