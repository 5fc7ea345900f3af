"""The settings of a pruning under way, as words that its checkpoints keep: it goes on with the same alone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from secateur.errors import BudgetError, StorageError
from secateur.pruning.prune import prune
from secateur.text import shown

_OBJECTS = ("data", "loss", "structure")  # what is read anew, and has no words
_DEFAULTS = {name: it.default for name, it in inspect.signature(prune).parameters.items()}


def settings_of(criterion: Any, budget: Any, schedule: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """Return by name what was chosen; of ``options`` those that are no default."""
    chosen = {"criterion": criterion, "budget": budget, "schedule": schedule}
    chosen |= {
        name: value
        for name, value in options.items()
        if name not in _OBJECTS and value is not None and value != _DEFAULTS[name]
    }
    return {name: _words(value) for name, value in chosen.items()}


def _words(value: Any) -> str:
    # Where an object lies says nothing of it, and differs in the next process.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr([value] if isinstance(value, str) else value))


def check_same(saved: Any, now: Mapping[str, str]) -> None:
    """Refuse settings other than those that a state was saved with; ``saved`` is None of an older state.

    Raises StorageError for what no state holds, BudgetError for other settings.
    """
    if saved is None:
        return
    if not (isinstance(saved, Mapping) and all(isinstance(x, str) for pair in saved.items() for x in pair)):
        raise StorageError("the state is not one of during(): its settings are words by name there")
    for name in (*now, *saved):
        before, here = saved.get(name, "the default"), now.get(name, "the default")
        if before != here:
            raise BudgetError(
                f"the state was saved with {name} {shown(before)}, and here it is {shown(here)}; "
                f"go on with the former, or begin without the state"
            )
