"""A part of a document validated: what is wrong is one line that names its place."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from secateur.errors import RecipeError, SecateurError
from secateur.experiments.yaml_lines import Located
from secateur.text import nearest, shown
from secateur.training.settings import Training


def validated(
    kind: Any, raw: Any, located: Located, place: tuple[Any, ...] = (), train: Training | None = None
) -> Any:
    """Validate ``raw`` as ``kind``; the first thing wrong becomes one line with its place.

    Args:
        kind: A pydantic class, or an annotated type.
        raw: What the document says.
        located: The document, which knows its lines.
        place: Where ``raw`` stands in it.
        train: What the trainings in it are like where they say nothing.

    Raises:
        RecipeError: ``raw`` is not of that kind.
    """
    try:
        return _adapter(kind).validate_python(raw, context={"train": train or Training()})
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


@contextmanager
def told_at(where: str) -> Iterator[None]:
    """Let an error of secateur's be the recipe's, and name the place ``where``."""
    try:
        yield
    except SecateurError as error:
        raise RecipeError(f"{where}: {error}") from error


def wrong(message: str, *loc: str | int) -> ValidationError:
    """Return the error that a validator raises for the part ``loc`` of what it was given.

    Example:
        >>> from secateur.experiments.validation import wrong
        >>> wrong("lr is -1; it is a number from 0", "train", "lr").errors()[0]["loc"]
        ('train', 'lr')
    """
    kind = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data("recipe", [InitErrorDetails(type=kind, loc=loc, input=None)])


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


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
