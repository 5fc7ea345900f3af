"""Which auto class of transformers opens a model, by transformers' own tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Those of many tasks come last: a network of a task is opened by its own.
_LAST = (
    "AutoModelForMaskedLM",
    "AutoModelForPreTraining",
    "AutoModelForMultimodalLM",
    "AutoModel",
    "AutoModelForTextEncoding",
)


def auto_class_of(model: Any) -> str:
    """Return the name of the auto class that has the class of a model for its configuration; the class's own
    where none has."""
    from transformers.models.auto import modeling_auto

    kind, name = model.config.model_type, type(model).__name__
    autos = [auto for auto in vars(modeling_auto) if auto.startswith("Auto")]
    for auto in sorted(autos, key=lambda auto: (_LAST.index(auto) + 1 if auto in _LAST else 0, auto)):
        if name in _classes(getattr(modeling_auto, auto), kind):
            return auto
    return name


def _classes(auto: Any, kind: str) -> Iterator[str]:
    table = getattr(getattr(auto, "_model_mapping", None), "_model_mapping", {})
    found = table.get(kind, ())
    yield from (found,) if isinstance(found, str) else found
