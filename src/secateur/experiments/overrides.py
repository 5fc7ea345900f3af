"""Settings put over a recipe's document: ``--set a.b=c``, and the points of a sweep."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from secateur.errors import RecipeError, nearest


def set_value(raw: dict[str, Any], key: str, value: Any, where: str, top_level: Collection[str]) -> None:
    """Put ``value`` at the dotted ``key`` of a recipe's document.

    Its first part is the id of a step, and reaches that step of every method, or one of the
    ``top_level`` keys. ``where`` begins the RecipeError for a key that is neither.
    """
    first, *rest = key.split(".")
    steps: dict[str, list[dict[str, Any]]] = {}
    for group in _step_lists(raw):
        for step in group:
            if isinstance(step, dict):
                own = str(step.get("id", next((k for k in step if k != "id"), "")))
                steps.setdefault(own, []).append(step)
    if first in steps and rest:
        for step in steps[first]:
            kind = next(k for k in step if k != "id")
            step[kind] = step[kind] or {}
            _set_in(step[kind], rest, value, where)
    elif first in top_level:
        _set_in(raw, [first, *rest], value, where)
    else:
        known = [*steps, "train", "model", "data", "threads", "device"]
        raise RecipeError(
            f"{where}: {first!r} is neither a step nor a key of the recipe{nearest(first, known)}"
        )


def _step_lists(raw: dict[str, Any]) -> list[list[Any]]:
    lists = [raw["steps"]] if isinstance(raw.get("steps"), list) else []
    methods = raw.get("methods")
    if isinstance(methods, dict):
        lists += [
            m["steps"] for m in methods.values() if isinstance(m, dict) and isinstance(m.get("steps"), list)
        ]
    return lists


def _set_in(raw: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    for key in keys[:-1]:
        inner = raw.get(key)
        if isinstance(inner, str):  # "criterion: magnitude" is short for {name: magnitude}
            inner = raw[key] = {"name": inner}
        if inner is None:
            inner = raw[key] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {key!r} is {inner!r}, which has no parts")
        raw = inner
    raw[keys[-1]] = value
