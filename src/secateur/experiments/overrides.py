"""Settings put over a recipe's document: ``--set a.b=c``, and the points of a sweep."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from secateur.errors import RecipeError
from secateur.experiments.yaml_lines import plain_copy
from secateur.text import nearest, shown


def set_value(raw: dict[str, Any], key: str, value: Any, where: str, top_level: Collection[str]) -> None:
    """Put a copy of ``value`` at the dotted ``key`` of a recipe's document.

    Its first part is the id of a step, and reaches that step of every method, or one of the
    ``top_level`` keys. ``where`` begins the RecipeError for a key that is neither, or that has no place.
    """
    first, *rest = key.split(".")
    if not all([first, *rest]):
        raise RecipeError(f"{where}: a part of the key is empty; write it like retrain.epochs")
    steps: dict[str, list[dict[str, Any]]] = {}
    for step in _steps(raw):
        steps.setdefault(str(id_of(step)), []).append(step)
    if first in steps and rest:
        for step in steps[first]:
            _set_in(step, [_kind(step), *rest], value, where)
    elif first in top_level:
        _set_in(raw, [first, *rest], value, where)
    else:
        known = [*steps, "train", "model", "data", "threads", "device"]
        raise RecipeError(
            f"{where}: {shown(first)!r} is neither a step nor a key of the recipe{nearest(first, known)}"
        )


def id_of(step: dict[str, Any]) -> Any:
    """Return the id that a step has, or else its kind; of a class of one's own, the class's name."""
    return step.get("id", _kind(step).rpartition(":")[2])


def _kind(step: dict[str, Any]) -> str:
    return next((key for key in step if key != "id"), "")


def _steps(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every step of a document, which nobody has validated yet."""
    methods = raw.get("methods")
    for part in (raw, *(methods.values() if isinstance(methods, dict) else ())):
        steps = part.get("steps") if isinstance(part, dict) else None
        yield from (step for step in steps if isinstance(step, dict)) if isinstance(steps, list) else ()


def _set_in(raw: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    for key in keys[:-1]:
        inner = raw.get(key)
        if isinstance(inner, str):  # "criterion: magnitude" is short for {name: magnitude}
            inner = raw[key] = {"name": inner}
        if inner is None:
            inner = raw[key] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {shown(key)!r} is {shown(inner)}, which has no parts by name")
        raw = inner
    raw[keys[-1]] = plain_copy(value, where)
