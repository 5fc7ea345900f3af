"""Criteria, budgets, shrinkages and schedules by the names that recipes and the command line use."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import secateur
from secateur.errors import RecipeError, SecateurError
from secateur.text import nearest

MODULES = {
    "criterion": ("pruning.criteria", "pruning.unit_criteria"),
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

    Raises RecipeError naming the unknown name or setting, or the value that does not fit.
    """
    if not isinstance(spec, (str, Mapping)):
        raise RecipeError(f"{kind}: {spec!r} is neither a name nor a mapping with one")
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    if name is None:
        raise RecipeError(f"{kind}: says no name; known: {', '.join(choices(kind))}")
    if not isinstance(name, str) or name not in choices(kind):
        raise RecipeError(f"{kind}: unknown name {name!r}{nearest(str(name), choices(kind))}")
    made = getattr(secateur, choices(kind)[name])
    fields = {f.name: f for f in dataclasses.fields(made)}
    for key in settings:
        if key not in fields:
            raise RecipeError(f"{kind} {name}: unknown setting {key!r}{nearest(key, fields)}")
    for field in fields.values():
        if field.name not in settings and field.default is dataclasses.MISSING:
            raise RecipeError(f"{kind} {name}: lacks {field.name!r}")
    try:
        return made(**{key: _typed(made, key, value) for key, value in settings.items()})
    except (SecateurError, TypeError) as error:
        raise RecipeError(f"{kind} {name}: {error}") from error


def as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; return the number it is, and anything else as it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _typed(made: type, key: str, value: Any) -> Any:
    """Return the value of a setting where it is of the type that its class says."""
    from pydantic import ValidationError

    value = as_number(value)
    try:
        _types(made)[key].validate_python(value)
    except ValidationError as error:
        raise RecipeError(f"{key} is {value!r}: {error.errors()[0]['msg']}") from error
    return value


@functools.cache
def _types(made: type) -> dict[str, Any]:
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(made)
    return {field.name: TypeAdapter(hints[field.name], config=strict) for field in dataclasses.fields(made)}
