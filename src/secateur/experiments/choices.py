"""Criteria, budgets, shrinkages and schedules by the names that recipes and the command line use."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import secateur
from secateur.errors import RecipeError, SecateurError, nearest

MODULES = {
    "criterion": ("pruning.criteria", "pruning.unit_criteria"),
    "budget": ("pruning.budgets", "pruning.structured"),
    "shrinkage": ("pruning.shrinkage",),
    "schedule": ("pruning.schedules",),
}


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
    if name not in choices(kind):
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
        return made(**{key: _number(value) for key, value in settings.items()})
    except (SecateurError, TypeError) as error:
        raise RecipeError(f"{kind} {name}: {error}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; take it for the number it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
